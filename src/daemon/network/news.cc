#include "src/daemon/network/news.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/snapshot.h"

namespace magnetar::daemon {
namespace {

bool IsOwnTap(const nlmsghdr* header) {
  // libnl's own readers change nothing, and take no const.
  auto* message = const_cast<nlmsghdr*>(header);
  if (::nlmsg_valid_hdr(message, sizeof(ifinfomsg)) == 0) return false;
  const nlattr* name = ::nlmsg_find_attr(message, sizeof(ifinfomsg), IFLA_IFNAME);
  if (name == nullptr) return false;
  LinkState link;
  link.kind = "tun";
  const auto* text = static_cast<const char*>(::nla_data(name));
  link.name = std::string(text, ::strnlen(text, static_cast<size_t>(::nla_len(name))));
  return InterfaceOfTap(link).has_value();
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
