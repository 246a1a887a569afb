#include "src/daemon/network/news.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/snapshot.h"

namespace magnetar::daemon {
namespace {

bool IsOwnTap(const nlmsghdr* header) {
  if (header->nlmsg_len < NLMSG_LENGTH(sizeof(ifinfomsg))) return false;
  const auto* info = static_cast<const ifinfomsg*>(NLMSG_DATA(header));
  int left = static_cast<int>(IFLA_PAYLOAD(header));
  for (const rtattr* a = IFLA_RTA(info); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
    if (a->rta_type != IFLA_IFNAME) continue;
    LinkState link;
    link.kind = "tun";
    const std::string_view name(static_cast<const char*>(RTA_DATA(a)), RTA_PAYLOAD(a));
    link.name = std::string(name.substr(0, name.find('\0')));
    return InterfaceOfTap(link).has_value();
  }
  return false;
}

PodNews NewsOf(const nlmsghdr* header) {
  switch (header->nlmsg_type) {
    case RTM_NEWLINK:
      return IsOwnTap(header) ? PodNews::kNone : PodNews::kChange;
    case RTM_DELLINK:
      return IsOwnTap(header) ? PodNews::kUntied : PodNews::kChange;
    case RTM_DELQDISC:
    case RTM_DELTFILTER:
      return PodNews::kUntied;
    case RTM_NEWADDR:
    case RTM_DELADDR:
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
    case RTM_NEWNEIGH:
    case RTM_DELNEIGH:
      return PodNews::kChange;
    default:
      return PodNews::kNone;
  }
}

}  // namespace

PodNews ReadPodNews(const void* messages, size_t size) {
  PodNews news = PodNews::kNone;
  auto left = static_cast<unsigned>(size);
  for (const auto* header = static_cast<const nlmsghdr*>(messages); NLMSG_OK(header, left);
       header = NLMSG_NEXT(header, left)) {
    news = std::max(news, NewsOf(header));
  }
  return news;
}

}  // namespace magnetar::daemon
