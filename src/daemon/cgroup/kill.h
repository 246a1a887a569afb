#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace magnetar::daemon {

// Processes of a cgroup directory and of those below it, without those of other pid namespaces. An
// absent directory has none.
absl::StatusOr<std::vector<int>> ProcessesIn(const std::string& directory);

// Ends every process in `directories` (one cgroup's, in each hierarchy) with SIGKILL and waits
// for their exits on pidfds. DEADLINE_EXCEEDED names the pids that are left after `limit`.
absl::Status KillProcesses(const std::vector<std::string>& directories,
                           std::chrono::milliseconds limit);

}  // namespace magnetar::daemon
