#pragma once

#include <chrono>
#include <vector>

#include "absl/status/status.h"
#include "src/daemon/sandbox/record.h"

namespace magnetar::daemon {

// SIGKILLs each that still runs, and blocks until all are gone. One that cannot be ended does
// not save the others; DEADLINE_EXCEEDED names the first that does not go.
absl::Status KillAndWait(const std::vector<RecordedProcess>& processes,
                         std::chrono::milliseconds timeout);

}  // namespace magnetar::daemon
