#pragma once

#include <chrono>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "guest-agent/network/netlink.h"

namespace magnetar::guest {

// An interface of this network namespace, other than the loopback.
struct Nic {
  int index = 0;
  std::string name;
  std::string mac;        // in lower case
  bool hardware = false;  // not made by software, as a container's bridge is
};

absl::StatusOr<std::vector<Nic>> ListNics(nl_sock* socket);

// The one with this MAC address. A bridge or a VLAN that a container has put on a NIC has the same:
// hardware comes first, and then what was there first.
std::optional<Nic> FindNic(const std::vector<Nic>& nics, const std::string& mac);

// All interfaces, as soon as each of `macs` is among them, or at the deadline. Blocks.
absl::StatusOr<std::vector<Nic>> WaitForNics(const std::set<std::string>& macs,
                                             std::chrono::nanoseconds timeout);

}  // namespace magnetar::guest
