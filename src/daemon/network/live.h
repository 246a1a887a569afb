#pragma once

#include <cstdint>
#include <set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/daemon/network/pod_network.h"

// NetworkManager's calls for a pod that runs, in the calling thread's netns.
namespace magnetar::daemon {

absl::StatusOr<PodState> ReadPod(uint32_t uid, const std::set<int>& tied);
absl::StatusOr<PodTap> TieLive(const PodInterface& interface, uint32_t uid);
absl::Status UntieLive(int index, uint32_t uid);
absl::Status SetTapMtu(int index, uint32_t mtu);
// A netlink socket that tells of changes, as PodWatch has it.
absl::StatusOr<UniqueFd> OpenNews();

}  // namespace magnetar::daemon
