#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// Makes it, so that VMMs reach their directories below.
absl::Status MakeRunDirectory(const std::string& path);

// Makes this process the only daemon of a run directory, for as long as the
// result is held. ALREADY_EXISTS names the directory if there is another.
absl::StatusOr<UniqueFd> LockRunDirectory(const std::string& run_dir);

}  // namespace magnetar::daemon
