#pragma once

#include "absl/status/status.h"
#include "guest-agent/init/kernel_command_line.h"

namespace magnetar::guest {

// Serves until the machine ends: puts the parts together, listens, and runs the
// main loop. Returns only if it cannot begin.
absl::Status Serve(const BootOptions& options);

}  // namespace magnetar::guest
