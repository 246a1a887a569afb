#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/supervisor.pb.h"

namespace magnetar::supervisor {

// The descriptor on which a supervisor finds its Launch.
inline constexpr int kLaunchFd = 3;

// Reads and checks the Launch on `fd`, and closes it.
absl::StatusOr<v1::Launch> ReadLaunch(int fd);
// INVALID_ARGUMENT names the field.
absl::Status ValidateLaunch(const v1::Launch& launch);

// Runs one VM to its end. Takes over the process: signals, subreaper, descriptors.
absl::Status RunSupervisor(const v1::Launch& launch);

}  // namespace magnetar::supervisor
