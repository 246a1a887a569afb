#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// Makes it, so that VMMs reach their directories below.
absl::Status MakeRunDirectory(const std::string& path);

// A daemon that was killed while it started a child has its directory until that child has become
// another program, which takes less than this.
inline constexpr std::chrono::milliseconds kLastBreath{5000};

// Makes this process the only daemon of a run directory, for as long as the
// result is held. ALREADY_EXISTS names the directory if another one keeps it for `patience`: then
// the caller's process should end, for it still waits for the lock.
absl::StatusOr<UniqueFd> LockRunDirectory(const std::string& run_dir,
                                          std::chrono::milliseconds patience = kLastBreath);

}  // namespace magnetar::daemon
