#include "src/daemon/network/pod_interfaces.h"

#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/daemon/network/macvtap.h"

namespace magnetar::daemon {
namespace {

constexpr absl::string_view kTapPrefix = "tap";
constexpr absl::string_view kTapSuffix = "_mgt";

bool IsMulticastOrLinkLocal(const IpPrefix& prefix) {
  if (prefix.family != AF_INET6) return false;
  if (prefix.bytes[0] == 0xff) return true;
  return prefix.bytes[0] == 0xfe && (prefix.bytes[1] & 0xc0) == 0x80;
}

IpPrefix NetworkOf(IpPrefix prefix) {
  const int size = prefix.family == AF_INET ? 4 : 16;
  for (int i = 0; i < size; ++i) {
    const int bits = std::clamp(prefix.length - 8 * i, 0, 8);
    prefix.bytes[i] &= static_cast<uint8_t>(0xff00 >> bits);
  }
  return prefix;
}

bool HasPeer(const AddressState& address) {
  return address.peer.family != 0 && address.peer.bytes != address.local.bytes;
}

bool BelongsInGuest(const AddressState& address) {
  // With IPv4 the bit of a temporary address says that it is not the first of its network.
  if (address.local.family == AF_INET) return true;
  return (address.flags & (IFA_F_TEMPORARY | IFA_F_DADFAILED)) == 0;
}

// What is there when a program on the host serves the other end of a tap.
bool IsServedTap(const LinkState& link) { return link.kind == "tun" && link.carrier; }

absl::Status CheckKind(const LinkState& link) {
  constexpr absl::string_view kSupported =
      "supported are veth, macvlan, macvtap, and taps whose other end a program on the host holds";
  if (link.kind.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(link.name,
                     ": physical interfaces cannot be given to a VM: there is no passthrough of "
                     "devices (VFIO, SR-IOV); ",
                     kSupported));
  }
  if (link.kind == "tun" && !link.carrier) {
    return absl::FailedPreconditionError(
        absl::StrCat(link.name,
                     ": nobody holds the other end of this tap, so it leads nowhere: a pod's VM "
                     "needs no tap of the CNI plugin's, it gets one for each interface; ",
                     kSupported));
  }
  if (link.kind != "veth" && link.kind != "macvlan" && link.kind != kMacvtap &&
      !IsServedTap(link)) {
    return absl::FailedPreconditionError(absl::StrCat(link.name, ": interfaces of kind ", link.kind,
                                                      " cannot be tied to a VM; ", kSupported));
  }
  return absl::OkStatus();
}

absl::Status CheckTieable(const LinkState& link) {
  if (absl::Status kind = CheckKind(link); !kind.ok()) return kind;
  if (link.mac.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(link.name, ": has no Ethernet address"));
  }
  for (const QdiscState& qdisc : link.qdiscs) {
    // The kernel's own default has no handle, whatever net.core.default_qdisc says.
    static const std::set<std::string> kDefaults = {"noqueue", "pfifo_fast", "fq_codel", "mq"};
    // Ours is left of a tap that somebody has deleted.
    if (TC_H_MAJ(qdisc.handle) == 0 || kDefaults.contains(qdisc.kind) || qdisc.ours) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        link.name, ": has a qdisc of kind ", qdisc.kind,
        " that somebody else has put there; it would not see the VM's traffic as meant"));
  }
  return absl::OkStatus();
}

// What holds for those that are tied already, too: whatever they become, the guest must be able to
// tell them apart and to name them.
absl::Status CheckIdentity(const LinkState& link, const std::vector<LinkState>& selected) {
  const bool printable =
      std::all_of(link.name.begin(), link.name.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!printable) {
    return absl::FailedPreconditionError(
        absl::StrCat(absl::CHexEscape(link.name), ": its name has other than ASCII characters"));
  }
  for (const LinkState& other : selected) {
    if (other.mac != link.mac) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(link.name, ": has the Ethernet address of ", other.name,
                     ", by which the guest tells its interfaces apart"));
  }
  return absl::OkStatus();
}

// Beside those that are selected already.
absl::Status CheckPlace(const LinkState& link, const std::vector<LinkState>& selected) {
  if (selected.size() < kMaxInterfaces) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      link.name, ": a VM takes at most ", kMaxInterfaces, " interfaces; the pod has more"));
}

agent::v1::Route ToRoute(const RouteState& state, const std::string& device) {
  agent::v1::Route route;
  route.set_destination(FormatPrefix(state.destination));
  if (state.gateway.family != 0) route.set_gateway(FormatAddress(state.gateway));
  if (state.source.family != 0) route.set_source(FormatAddress(state.source));
  route.set_device(device);
  route.set_metric(state.metric);
  route.set_scope(state.scope);
  route.set_mtu(state.mtu);
  route.set_onlink(state.onlink);
  return route;
}

bool HasKernelRoute(const NetnsSnapshot& snapshot, const LinkState& link, const IpPrefix& network) {
  return std::any_of(snapshot.routes.begin(), snapshot.routes.end(), [&](const RouteState& route) {
    return route.link == link.index && route.table == RT_TABLE_MAIN &&
           route.protocol == RTPROT_KERNEL && route.destination == network;
  });
}

// Whether the guest's kernel makes this route itself when it gets its addresses.
bool FollowsFromAddresses(const RouteState& route, const std::vector<IpPrefix>& networks) {
  if (IsMulticastOrLinkLocal(route.destination)) {
    // fe80::/64 and ff00::/8; a static route to one such address is CNI's.
    return route.protocol == RTPROT_KERNEL || route.destination.length <= 64;
  }
  return route.protocol == RTPROT_KERNEL &&
         std::find(networks.begin(), networks.end(), route.destination) != networks.end();
}

}  // namespace

std::string FormatAddress(const IpPrefix& prefix) {
  char text[INET6_ADDRSTRLEN];
  if (::inet_ntop(prefix.family, prefix.bytes.data(), text, sizeof(text)) == nullptr) return "";
  return text;
}

std::string FormatPrefix(const IpPrefix& prefix) {
  return absl::StrCat(FormatAddress(prefix), "/", prefix.length);
}

std::string TapName(int interface_index) {
  return absl::StrCat(kTapPrefix, absl::Hex(interface_index), kTapSuffix);
}

std::optional<int> InterfaceOfTap(const LinkState& link) {
  absl::string_view name = link.name;
  int index = 0;
  if (link.kind != "tun" || !absl::ConsumePrefix(&name, kTapPrefix) ||
      !absl::ConsumeSuffix(&name, kTapSuffix) || !absl::SimpleHexAtoi(name, &index) || index <= 0 ||
      TapName(index) != link.name) {
    return std::nullopt;
  }
  return index;
}

absl::StatusOr<std::vector<LinkState>> SelectInterfaces(const NetnsSnapshot& snapshot) {
  Selection selection = SelectLive(snapshot, {});
  if (!selection.refused.empty()) return selection.refused[0].status;
  return std::move(selection.interfaces);
}

Selection SelectLive(const NetnsSnapshot& snapshot, const std::set<int>& tied) {
  std::vector<LinkState> links = snapshot.links;
  const auto by_index = [](const LinkState& a, const LinkState& b) { return a.index < b.index; };
  std::sort(links.begin(), links.end(), by_index);
  Selection selection;
  for (const LinkState& link : links) {
    if (!tied.contains(link.index)) continue;
    absl::Status status = CheckIdentity(link, selection.interfaces);
    if (status.ok()) {
      selection.interfaces.push_back(link);
    } else {
      selection.refused.push_back({link.index, link.name, std::move(status)});
    }
  }
  for (const LinkState& link : links) {
    const bool addressed =
        std::any_of(snapshot.addresses.begin(), snapshot.addresses.end(),
                    [&link](const AddressState& a) { return a.link == link.index; });
    if (link.loopback || InterfaceOfTap(link).has_value() || (!link.up && !addressed) ||
        tied.contains(link.index)) {
      continue;
    }
    absl::Status status = CheckTieable(link);
    if (status.ok()) status = CheckIdentity(link, selection.interfaces);
    if (status.ok()) status = CheckPlace(link, selection.interfaces);
    if (status.ok()) {
      selection.interfaces.push_back(link);
    } else {
      selection.refused.push_back({link.index, link.name, std::move(status)});
    }
  }
  std::sort(selection.interfaces.begin(), selection.interfaces.end(), by_index);
  return selection;
}

agent::v1::Network BuildGuestNetwork(const NetnsSnapshot& snapshot,
                                     const std::vector<LinkState>& interfaces) {
  agent::v1::Network network;
  std::vector<agent::v1::Route> through_gateways;
  // Two alike are hops of one multipath route; the guest would replace one by the other.
  std::set<std::pair<std::string, uint32_t>> seen;
  for (const LinkState& link : interfaces) {
    agent::v1::Interface& interface = *network.add_interfaces();
    interface.set_name(link.name);
    interface.set_mac(link.mac);
    interface.set_mtu(link.mtu);
    interface.set_down(!link.up);
    std::vector<IpPrefix> networks;
    for (const AddressState& address : snapshot.addresses) {
      if (address.link != link.index || !BelongsInGuest(address)) continue;
      IpPrefix local = address.local;
      // Some CNI plugins (ptp) take the kernel's route to the address's network away, and
      // agent.proto knows no peers: then the address comes alone and the routes
      // as routes, since with a prefix the guest's kernel would make that route again.
      // Link-local addresses keep theirs: neighbour discovery needs that route. An interface that
      // is down has no routes at all.
      if (link.up && !IsMulticastOrLinkLocal(local) &&
          (HasPeer(address) || !HasKernelRoute(snapshot, link, NetworkOf(local)))) {
        local.length = local.family == AF_INET ? 32 : 128;
      }
      interface.add_addresses(FormatPrefix(local));
      networks.push_back(NetworkOf(local));
    }
    for (const RouteState& route : snapshot.routes) {
      if (route.link != link.index || route.table != RT_TABLE_MAIN || route.type != RTN_UNICAST ||
          FollowsFromAddresses(route, networks) ||
          !seen.insert({FormatPrefix(route.destination), route.metric}).second) {
        continue;
      }
      if (route.gateway.family == 0) {
        *network.add_routes() = ToRoute(route, link.name);
      } else {
        through_gateways.push_back(ToRoute(route, link.name));
      }
    }
    for (const NeighbourState& neighbour : snapshot.neighbours) {
      if (neighbour.link != link.index || (neighbour.state & NUD_PERMANENT) == 0 ||
          (neighbour.flags & NTF_PROXY) != 0 || neighbour.mac.empty()) {
        continue;
      }
      agent::v1::Neighbour& out = *network.add_neighbours();
      out.set_device(link.name);
      out.set_address(FormatAddress(neighbour.address));
      out.set_mac(neighbour.mac);
    }
  }
  for (agent::v1::Route& route : through_gateways) *network.add_routes() = std::move(route);
  return network;
}

}  // namespace magnetar::daemon
