#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

struct nl_sock;

// What a network namespace holds, read once and then plain data, so that every decision
// about it is a pure function (pod_interfaces.h).
namespace magnetar::daemon {

// An address with a prefix length; `family` is AF_INET, AF_INET6, or 0 for none.
struct IpPrefix {
  int family = 0;
  std::array<uint8_t, 16> bytes = {};  // network order; v4 uses four of them
  int length = 0;

  bool operator==(const IpPrefix&) const = default;
};

struct QdiscState {
  std::string kind;
  uint32_t handle = 0;
  // Of an ingress qdisc: whether it has filters, and whether one is RedirectIngress's (traffic.h).
  bool filtered = false;
  bool ours = false;
};

struct LinkState {
  int index = 0;
  std::string name;
  std::string kind;  // IFLA_INFO_KIND: "veth"; empty for hardware and loopback
  std::string mac;
  uint32_t mtu = 0;
  bool up = false;
  bool loopback = false;
  bool carrier = false;
  std::vector<QdiscState> qdiscs;
};

struct AddressState {
  int link = 0;
  IpPrefix local;
  IpPrefix peer;       // family 0: none
  uint32_t flags = 0;  // IFA_F_*
};

struct RouteState {
  int link = 0;
  IpPrefix destination;  // length 0: default
  IpPrefix gateway;      // family 0: on link
  IpPrefix source;
  uint32_t table = 0;
  uint8_t type = 0;      // RTN_*
  uint8_t protocol = 0;  // RTPROT_*
  uint8_t scope = 0;     // RT_SCOPE_*
  uint32_t metric = 0;
  uint32_t mtu = 0;
  bool onlink = false;
};

struct NeighbourState {
  int link = 0;
  IpPrefix address;
  std::string mac;
  int state = 0;       // NUD_*
  uint32_t flags = 0;  // NTF_*
};

struct NetnsSnapshot {
  std::vector<LinkState> links;
  std::vector<AddressState> addresses;
  std::vector<RouteState> routes;
  std::vector<NeighbourState> neighbours;
};

// Links and qdiscs of the socket's namespace.
absl::StatusOr<std::vector<LinkState>> ReadLinks(nl_sock* socket);

absl::StatusOr<NetnsSnapshot> ReadSnapshot(nl_sock* socket);

}  // namespace magnetar::daemon
