#include "src/daemon/network/live.h"

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/network/macvtap.h"
#include "src/daemon/network/netlink.h"
#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/snapshot.h"
#include "src/daemon/network/tap.h"
#include "src/daemon/network/tie.h"

namespace magnetar::daemon {
namespace {

bool RedirectsIngress(const LinkState& link) {
  return std::any_of(link.qdiscs.begin(), link.qdiscs.end(),
                     [](const QdiscState& qdisc) { return qdisc.filtered; });
}

// By the index of the interface that each stands for.
std::map<int, LinkState> TapsOf(const NetnsSnapshot& snapshot,
                                const std::map<int, uint32_t>& owners, uint32_t uid) {
  std::map<int, LinkState> taps;
  for (const LinkState& link : snapshot.links) {
    const auto index = InterfaceOfTap(link);
    const auto owner = owners.find(link.index);
    if (index.has_value() && (owner == owners.end() || owner->second == uid)) {
      taps.emplace(*index, link);
    }
  }
  return taps;
}

}  // namespace

absl::StatusOr<PodState> ReadPod(uint32_t uid, const std::set<int>& tied) {
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  auto snapshot = ReadSnapshot(socket->get());
  if (!snapshot.ok()) return snapshot.status();
  auto owners = ReadTapOwners();
  if (!owners.ok()) return owners.status();
  const std::map<int, LinkState> taps = TapsOf(*snapshot, *owners, uid);
  PodState state;
  for (const auto& [index, tap] : taps) state.taps.emplace(index, tap.mtu);
  // What has a tap of ours has our qdisc, too, which is nobody's else.
  std::set<int> known = tied;
  for (const auto& [index, tap] : taps) known.insert(index);
  Selection selection = SelectLive(*snapshot, known);
  state.guest = BuildGuestNetwork(*snapshot, selection.interfaces);
  for (const LinkState& link : selection.interfaces) {
    PodInterface interface {
      .index = link.index, .name = link.name, .mac = link.mac, .mtu = link.mtu,
      .tied = link.kind == kMacvtap
    };
    if (const auto tap = taps.find(link.index); tap != taps.end()) {
      interface.tied = RedirectsIngress(link) && RedirectsIngress(tap->second);
    }
    state.interfaces.push_back(std::move(interface));
  }
  state.refused = std::move(selection.refused);
  return state;
}

absl::StatusOr<PodTap> TieLive(const PodInterface& interface, uint32_t uid) {
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  auto links = ReadLinks(socket->get());
  if (!links.ok()) return links.status();
  for (const LinkState& link : *links) {
    if (link.index == interface.index) return TieInterface(socket->get(), link, uid);
  }
  return absl::NotFoundError(absl::StrCat("interface ", interface.name, " is gone"));
}

absl::Status UntieLive(int index, uint32_t uid) {
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  return UntieInterface(socket->get(), index, uid);
}

absl::Status SetTapMtu(int index, uint32_t mtu) {
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  return SetLinkMtu(socket->get(), TapName(index), mtu);
}

absl::StatusOr<UniqueFd> OpenNews() {
  UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  if (!socket.ok()) return ErrnoStatus(errno, "open netlink socket");
  sockaddr_nl address = {};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE |
                      RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE | RTMGRP_TC;
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, "bind netlink socket");
  }
  return socket;
}

}  // namespace magnetar::daemon
