#include "guest-agent/network/routes.h"

#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/network/network.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

// Marks a route as made here, among the kernel's and the containers' own.
constexpr uint8_t kProtocol = RTPROT_STATIC;

absl::StatusOr<int> DeviceIndex(const std::string& name) {
  MAGNETAR_RETURN_IF_ERROR(CheckInterfaceName(name));
  const unsigned index = ::if_nametoindex(name.c_str());
  if (index == 0) return absl::NotFoundError(absl::StrCat("no interface ", name));
  return static_cast<int>(index);
}

// nl_addr_parse knows no family of "0.0.0.0/0"-like text for itself.
int FamilyOf(const std::string& address) {
  return address.find(':') == std::string::npos ? AF_INET : AF_INET6;
}

absl::StatusOr<NlRoute> BuildRoute(const agent::v1::Route& wanted) {
  const int family = FamilyOf(wanted.destination());
  auto destination = ParseNlAddr(wanted.destination(), family);
  if (!destination.ok()) return destination.status();
  const absl::StatusOr<int> device = DeviceIndex(wanted.device());
  if (!device.ok()) return device.status();
  NlRoute route(rtnl_route_alloc());
  rtnl_route_set_family(route.get(), static_cast<uint8_t>(family));
  rtnl_route_set_dst(route.get(), destination->get());
  rtnl_route_set_table(route.get(), RT_TABLE_MAIN);
  rtnl_route_set_protocol(route.get(), kProtocol);
  rtnl_route_set_scope(route.get(), static_cast<uint8_t>(wanted.scope()));
  rtnl_route_set_type(route.get(), RTN_UNICAST);
  if (wanted.metric() != 0) rtnl_route_set_priority(route.get(), wanted.metric());
  if (wanted.mtu() != 0) rtnl_route_set_metric(route.get(), RTAX_MTU, wanted.mtu());
  if (!wanted.source().empty()) {
    auto source = ParseNlAddr(wanted.source(), family);
    if (!source.ok()) return source.status();
    rtnl_route_set_pref_src(route.get(), source->get());
  }
  rtnl_nexthop* hop = rtnl_route_nh_alloc();
  rtnl_route_nh_set_ifindex(hop, *device);
  if (wanted.onlink()) rtnl_route_nh_set_flags(hop, RTNH_F_ONLINK);
  rtnl_route_add_nexthop(route.get(), hop);
  if (!wanted.gateway().empty()) {
    auto gateway = ParseNlAddr(wanted.gateway(), family);
    if (!gateway.ok()) return gateway.status();
    rtnl_route_nh_set_gateway(hop, gateway->get());
  }
  return route;
}

// Family, length and bytes: libnl's text of a default route depends on where it comes from, "none"
// from the kernel and "0.0.0.0/0" as parsed.
std::string AddressKey(nl_addr* address) {
  if (address == nullptr || nl_addr_get_prefixlen(address) == 0) return "-";
  return absl::StrCat(
      absl::BytesToHexString(
          {static_cast<const char*>(nl_addr_get_binary_addr(address)), nl_addr_get_len(address)}),
      "/", nl_addr_get_prefixlen(address));
}

uint32_t Metric(rtnl_route* route) {
  const uint32_t metric = rtnl_route_get_priority(route);
  // What the kernel makes of none.
  constexpr uint32_t kDefaultV6 = 1024;
  return metric == 0 && rtnl_route_get_family(route) == AF_INET6 ? kDefaultV6 : metric;
}

// What makes two routes the same one.
std::string Key(rtnl_route* route) {
  rtnl_nexthop* hop = rtnl_route_nexthop_n(route, 0);
  return absl::StrCat(rtnl_route_get_family(route), " ", AddressKey(rtnl_route_get_dst(route)), " ",
                      Metric(route), " ", hop == nullptr ? 0 : rtnl_route_nh_get_ifindex(hop), " ",
                      AddressKey(hop == nullptr ? nullptr : rtnl_route_nh_get_gateway(hop)));
}

absl::Status RemoveOthers(nl_sock* socket, const std::set<std::string>& wanted) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(rtnl_route_alloc_cache(socket, AF_UNSPEC, 0, &raw), "list routes"));
  const NlCache cache(raw);
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* route = reinterpret_cast<rtnl_route*>(object);
    if (rtnl_route_get_protocol(route) != kProtocol ||
        rtnl_route_get_table(route) != RT_TABLE_MAIN || wanted.contains(Key(route))) {
      continue;
    }
    const absl::Status status =
        NlStatus(rtnl_route_delete(socket, route, 0),
                 absl::StrCat("remove route ", ToString(rtnl_route_get_dst(route))));
    if (!status.ok() && !absl::IsNotFound(status)) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SyncRoutes(nl_sock* socket, const agent::v1::Network& network) {
  std::vector<const agent::v1::Route*> order;
  for (const agent::v1::Route& route : network.routes()) order.push_back(&route);
  // A gateway must be reachable before a route can go through it.
  std::stable_partition(order.begin(), order.end(),
                        [](const agent::v1::Route* route) { return route->gateway().empty(); });
  absl::Status result;
  std::vector<NlRoute> routes;
  std::vector<std::string> names;
  std::set<std::string> wanted;
  for (const agent::v1::Route* route : order) {
    auto built = BuildRoute(*route);
    if (!built.ok()) {
      result.Update(Annotate(built.status(), absl::StrCat("route ", route->destination())));
      continue;
    }
    wanted.insert(Key(built->get()));
    routes.push_back(*std::move(built));
    names.push_back(route->destination());
  }
  result.Update(RemoveOthers(socket, wanted));
  for (size_t i = 0; i < routes.size(); ++i) {
    const absl::Status status =
        NlStatus(rtnl_route_add(socket, routes[i].get(), NLM_F_CREATE | NLM_F_REPLACE),
                 absl::StrCat("add route ", names[i]));
    if (!absl::IsAlreadyExists(status)) result.Update(status);
  }
  return result;
}

namespace {

absl::StatusOr<NlNeighbour> BuildNeighbour(const agent::v1::Neighbour& wanted) {
  const absl::StatusOr<int> device = DeviceIndex(wanted.device());
  if (!device.ok()) return device.status();
  auto address = ParseNlAddr(wanted.address(), FamilyOf(wanted.address()));
  if (!address.ok()) return address.status();
  const auto mac = NormalizeMac(wanted.mac());
  if (!mac.ok()) return mac.status();
  auto link_layer = ParseNlAddr(*mac, AF_LLC);
  if (!link_layer.ok()) return link_layer.status();
  NlNeighbour neighbour(rtnl_neigh_alloc());
  rtnl_neigh_set_ifindex(neighbour.get(), *device);
  rtnl_neigh_set_dst(neighbour.get(), address->get());
  rtnl_neigh_set_lladdr(neighbour.get(), link_layer->get());
  rtnl_neigh_set_state(neighbour.get(), NUD_PERMANENT);
  return neighbour;
}

}  // namespace

absl::Status SyncNeighbours(nl_sock* socket, const agent::v1::Network& network,
                            const std::vector<agent::v1::Neighbour>& before) {
  std::set<std::pair<std::string, std::string>> wanted;
  for (const agent::v1::Neighbour& neighbour : network.neighbours()) {
    wanted.emplace(neighbour.device(), neighbour.address());
  }
  absl::Status result;
  for (const agent::v1::Neighbour& old : before) {
    if (wanted.contains({old.device(), old.address()})) continue;
    const auto neighbour = BuildNeighbour(old);
    // Its interface is gone, and it with it.
    if (!neighbour.ok()) continue;
    const absl::Status removed = NlStatus(rtnl_neigh_delete(socket, neighbour->get(), 0),
                                          absl::StrCat("remove neighbour ", old.address()));
    if (!absl::IsNotFound(removed)) result.Update(removed);
  }
  for (const agent::v1::Neighbour& neighbour : network.neighbours()) {
    const auto built = BuildNeighbour(neighbour);
    if (!built.ok()) {
      result.Update(Annotate(built.status(), absl::StrCat("neighbour ", neighbour.address())));
      continue;
    }
    result.Update(NlStatus(rtnl_neigh_add(socket, built->get(), NLM_F_CREATE | NLM_F_REPLACE),
                           absl::StrCat("add neighbour ", neighbour.address())));
  }
  return result;
}

}  // namespace magnetar::guest
