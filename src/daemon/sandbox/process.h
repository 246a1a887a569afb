#pragma once

#include <chrono>
#include <vector>

#include "absl/status/status.h"
#include "src/daemon/sandbox/record.h"

namespace magnetar::daemon {

// SIGKILLs each that still runs, one after the other, and blocks until it is gone.
// DEADLINE_EXCEEDED names one that does not go.
absl::Status KillAndWait(const std::vector<RecordedProcess>& processes,
                         std::chrono::milliseconds timeout);

}  // namespace magnetar::daemon
