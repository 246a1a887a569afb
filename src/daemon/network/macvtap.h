#pragma once

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/network/snapshot.h"

namespace magnetar::daemon {

// What LinkState::kind says of a macvtap.
inline constexpr char kMacvtap[] = "macvtap";

// Opens the tap of a macvtap in the calling thread's netns, ready for the VMM as PodTap::fd
// is. While it is open, what arrives for the interface goes there and nowhere else. Nothing is left
// on the host: its device number comes from the namespace's own sysfs, and its device node exists
// in a file system that nobody else sees.
absl::StatusOr<UniqueFd> OpenMacvtap(const LinkState& interface);

}  // namespace magnetar::daemon
