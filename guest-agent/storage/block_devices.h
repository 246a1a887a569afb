#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

// The number of the disk with a serial, waiting for it to appear. Blocks.
absl::StatusOr<dev_t> DiskNumber(const std::string& serial);

// The spec of a container that may use disks itself: with the numbers that they have in the guest,
// and with the rules that allow them. Calls `find` for each one. INVALID_ARGUMENT if the spec has
// no place for one; what `find` says.
absl::StatusOr<std::string> SpecWithDisks(
    const agent::v1::PreparedContainer& prepared,
    const std::function<absl::StatusOr<dev_t>(const std::string& serial)>& find);

}  // namespace magnetar::guest
