#include "src/daemon/network/snapshot.h"

#include <net/if.h>
#include <netlink/addr.h>
#include <netlink/cache.h>
#include <netlink/route/addr.h>
#include <netlink/route/classifier.h>
#include <netlink/route/link.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/route.h>
#include <netlink/route/tc.h>

#include <algorithm>
#include <cstring>

#include "magnetar/status.h"
#include "src/daemon/network/netlink.h"
#include "src/daemon/network/traffic.h"

namespace magnetar::daemon {
namespace {

IpPrefix ToPrefix(nl_addr* address) {
  IpPrefix prefix;
  if (address == nullptr) return prefix;
  const int family = ::nl_addr_get_family(address);
  if (family != AF_INET && family != AF_INET6) return prefix;
  prefix.family = family;
  prefix.length = static_cast<int>(::nl_addr_get_prefixlen(address));
  const size_t size = std::min<size_t>(::nl_addr_get_len(address), prefix.bytes.size());
  std::memcpy(prefix.bytes.data(), ::nl_addr_get_binary_addr(address), size);
  return prefix;
}

std::string ToMac(nl_addr* address) {
  if (address == nullptr || ::nl_addr_get_len(address) != 6) return "";
  char text[32];
  return ::nl_addr2str(address, text, sizeof(text));
}

template <typename Object, typename F>
void ForEach(const NlCache& cache, F f) {
  for (nl_object* object = ::nl_cache_get_first(cache.get()); object != nullptr;
       object = ::nl_cache_get_next(object)) {
    f(reinterpret_cast<Object*>(object));
  }
}

absl::Status ReadAddresses(nl_sock* socket, NetnsSnapshot& out) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_addr_alloc_cache(socket, &raw), "list addresses"));
  ForEach<rtnl_addr>(NlCache(raw), [&out](rtnl_addr* address) {
    AddressState state;
    state.link = ::rtnl_addr_get_ifindex(address);
    state.local = ToPrefix(::rtnl_addr_get_local(address));
    state.local.length = ::rtnl_addr_get_prefixlen(address);
    state.peer = ToPrefix(::rtnl_addr_get_peer(address));
    state.flags = ::rtnl_addr_get_flags(address);
    if (state.local.family != 0) out.addresses.push_back(state);
  });
  return absl::OkStatus();
}

absl::Status ReadRoutes(nl_sock* socket, NetnsSnapshot& out) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_route_alloc_cache(socket, AF_UNSPEC, 0, &raw), "list routes"));
  ForEach<rtnl_route>(NlCache(raw), [&out](rtnl_route* route) {
    RouteState state;
    state.destination = ToPrefix(::rtnl_route_get_dst(route));
    state.destination.family = ::rtnl_route_get_family(route);
    state.source = ToPrefix(::rtnl_route_get_pref_src(route));
    state.table = ::rtnl_route_get_table(route);
    state.type = ::rtnl_route_get_type(route);
    state.protocol = ::rtnl_route_get_protocol(route);
    state.scope = ::rtnl_route_get_scope(route);
    state.metric = ::rtnl_route_get_priority(route);
    uint32_t mtu = 0;
    if (::rtnl_route_get_metric(route, RTAX_MTU, &mtu) == 0) state.mtu = mtu;
    // agent.proto has no multipath: every hop becomes a route, of which the guest gets one.
    for (int i = 0; i < ::rtnl_route_get_nnexthops(route); ++i) {
      rtnl_nexthop* hop = ::rtnl_route_nexthop_n(route, i);
      state.link = ::rtnl_route_nh_get_ifindex(hop);
      state.gateway = ToPrefix(::rtnl_route_nh_get_gateway(hop));
      if (state.gateway.family == 0) state.gateway = ToPrefix(::rtnl_route_nh_get_via(hop));
      state.onlink = (::rtnl_route_nh_get_flags(hop) & RTNH_F_ONLINK) != 0;
      out.routes.push_back(state);
    }
  });
  return absl::OkStatus();
}

absl::Status ReadNeighbours(nl_sock* socket, NetnsSnapshot& out) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_neigh_alloc_cache(socket, &raw), "list neighbours"));
  ForEach<rtnl_neigh>(NlCache(raw), [&out](rtnl_neigh* neighbour) {
    NeighbourState state;
    state.link = ::rtnl_neigh_get_ifindex(neighbour);
    state.address = ToPrefix(::rtnl_neigh_get_dst(neighbour));
    state.mac = ToMac(::rtnl_neigh_get_lladdr(neighbour));
    state.state = ::rtnl_neigh_get_state(neighbour);
    state.flags = ::rtnl_neigh_get_flags(neighbour);
    if (state.address.family != 0) out.neighbours.push_back(state);
  });
  return absl::OkStatus();
}

absl::Status ReadFilters(nl_sock* socket, int index, QdiscState& qdisc) {
  nl_cache* raw = nullptr;
  const int error = ::rtnl_cls_alloc_cache(socket, index, qdisc.handle, &raw);
  const absl::Status status = NlStatus(error, "list filters");
  // It went away meanwhile.
  if (absl::IsNotFound(status)) return absl::OkStatus();
  if (!status.ok()) return status;
  ForEach<rtnl_cls>(NlCache(raw), [&qdisc](rtnl_cls* filter) {
    qdisc.filtered = true;
    qdisc.ours = qdisc.ours || ::rtnl_cls_get_prio(filter) == kRedirectPriority;
  });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<LinkState>> ReadLinks(nl_sock* socket) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(::rtnl_link_alloc_cache(socket, AF_UNSPEC, &raw), "list interfaces"));
  std::vector<LinkState> links;
  ForEach<rtnl_link>(NlCache(raw), [&links](rtnl_link* link) {
    LinkState state;
    state.index = ::rtnl_link_get_ifindex(link);
    if (const char* name = ::rtnl_link_get_name(link)) state.name = name;
    if (const char* kind = ::rtnl_link_get_type(link)) state.kind = kind;
    state.mac = ToMac(::rtnl_link_get_addr(link));
    state.mtu = ::rtnl_link_get_mtu(link);
    state.up = (::rtnl_link_get_flags(link) & IFF_UP) != 0;
    state.loopback = (::rtnl_link_get_flags(link) & IFF_LOOPBACK) != 0;
    state.carrier = ::rtnl_link_get_carrier(link) != 0;
    links.push_back(std::move(state));
  });
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_qdisc_alloc_cache(socket, &raw), "list qdiscs"));
  ForEach<rtnl_qdisc>(NlCache(raw), [&links](rtnl_qdisc* qdisc) {
    rtnl_tc* tc = TC_CAST(qdisc);
    const int index = ::rtnl_tc_get_ifindex(tc);
    const auto link = std::find_if(links.begin(), links.end(),
                                   [index](const LinkState& l) { return l.index == index; });
    const char* kind = ::rtnl_tc_get_kind(tc);
    if (link == links.end() || kind == nullptr) return;
    QdiscState state;
    state.kind = kind;
    state.handle = ::rtnl_tc_get_handle(tc);
    link->qdiscs.push_back(std::move(state));
  });
  for (LinkState& link : links) {
    for (QdiscState& qdisc : link.qdiscs) {
      if (qdisc.kind == "ingress") MAGNETAR_RETURN_IF_ERROR(ReadFilters(socket, link.index, qdisc));
    }
  }
  return links;
}

absl::StatusOr<NetnsSnapshot> ReadSnapshot(nl_sock* socket) {
  NetnsSnapshot out;
  auto links = ReadLinks(socket);
  if (!links.ok()) return links.status();
  out.links = *std::move(links);
  MAGNETAR_RETURN_IF_ERROR(ReadAddresses(socket, out));
  MAGNETAR_RETURN_IF_ERROR(ReadRoutes(socket, out));
  MAGNETAR_RETURN_IF_ERROR(ReadNeighbours(socket, out));
  return out;
}

}  // namespace magnetar::daemon
