#pragma once

#include <cstddef>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/network/snapshot.h"

// Decisions about a pod's namespace; no system calls.
namespace magnetar::daemon {

// The fixed names by which Detach finds what Attach made: "tap2_mgt" stands for the
// interface with index 2 (hexadecimal, so that every index fits into IFNAMSIZ).
std::string TapName(int interface_index);
std::optional<int> InterfaceOfTap(const LinkState& link);

// How many interfaces every VMM has ports for.
inline constexpr size_t kMaxInterfaces = 4;

// The interfaces to tie, in order of their index. Interfaces that are down and have no address
// are no part of the pod (sit0, tunl0 and their like appear in every netns). FAILED_PRECONDITION
// names the first one that cannot be tied, and why.
absl::StatusOr<std::vector<LinkState>> SelectInterfaces(const NetnsSnapshot& snapshot);

struct Selection {
  std::vector<LinkState> interfaces;  // at most kMaxInterfaces, in order of their index
  std::vector<RefusedInterface> refused;
};

// The same for a pod that runs: the interfaces with the indices `tied` are its already, stay
// whatever becomes of them, and come before others; unless the guest could not tell them apart.
Selection SelectLive(const NetnsSnapshot& snapshot, const std::set<int>& tied);

// What the guest shall have: all addresses, link-local ones too (it derives none itself), but
// temporary ones and those that somebody else turned out to have; routes of the main table without
// those that follow from the addresses, on-link ones first; and permanent neighbours.
agent::v1::Network BuildGuestNetwork(const NetnsSnapshot& snapshot,
                                     const std::vector<LinkState>& interfaces);

// "10.0.0.2/24"; without the length: "10.0.0.2".
std::string FormatPrefix(const IpPrefix& prefix);
std::string FormatAddress(const IpPrefix& prefix);

}  // namespace magnetar::daemon
