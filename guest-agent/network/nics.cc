#include "guest-agent/network/nics.h"

#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/netlink.h>
#include <sys/socket.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "guest-agent/util/news.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

using Clock = std::chrono::steady_clock;

// Links as they come and go.
absl::StatusOr<NlSocket> SubscribeToLinks() {
  NlSocket socket(nl_socket_alloc());
  if (socket == nullptr) return absl::ResourceExhaustedError("netlink socket");
  MAGNETAR_RETURN_IF_ERROR(NlStatus(nl_connect(socket.get(), NETLINK_ROUTE), "netlink"));
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(nl_socket_add_memberships(socket.get(), RTNLGRP_LINK, 0), "watch interfaces"));
  return socket;
}

}  // namespace

absl::StatusOr<std::vector<Nic>> ListNics(nl_sock* socket) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(rtnl_link_alloc_cache(socket, AF_UNSPEC, &raw), "list interfaces"));
  const NlCache cache(raw);
  std::vector<Nic> nics;
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* link = reinterpret_cast<rtnl_link*>(object);
    if ((rtnl_link_get_flags(link) & IFF_LOOPBACK) != 0) continue;
    nics.push_back({rtnl_link_get_ifindex(link), rtnl_link_get_name(link),
                    absl::AsciiStrToLower(ToString(rtnl_link_get_addr(link))),
                    rtnl_link_get_type(link) == nullptr});
  }
  return nics;
}

std::optional<Nic> FindNic(const std::vector<Nic>& nics, const std::string& mac) {
  std::optional<Nic> found;
  for (const Nic& nic : nics) {
    if (nic.mac != mac) continue;
    const bool better = !found.has_value() ||
                        (nic.hardware == found->hardware ? nic.index < found->index : nic.hardware);
    if (better) found = nic;
  }
  return found;
}

absl::StatusOr<std::vector<Nic>> WaitForNics(const std::set<std::string>& macs,
                                             std::chrono::nanoseconds timeout) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout);
  // Before the first look, or one that comes in between would go unnoticed.
  auto news = SubscribeToLinks();
  if (!news.ok()) return news.status();
  auto socket = ConnectNetlink();
  if (!socket.ok()) return socket.status();
  while (true) {
    auto nics = ListNics(socket->get());
    if (!nics.ok()) return nics.status();
    const bool complete = std::all_of(macs.begin(), macs.end(), [&](const std::string& mac) {
      return FindNic(*nics, mac).has_value();
    });
    if (complete || !WaitForNews(nl_socket_get_fd(news->get()), deadline)) return nics;
  }
}

}  // namespace magnetar::guest
