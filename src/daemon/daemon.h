#pragma once

#include "src/daemon/options.h"

namespace magnetar::daemon {

// The daemon, from its start to SIGTERM, which ends the process here. Logs errors. Returns,
// with the process's exit code, only if it cannot start.
int RunDaemon(Options options);

}  // namespace magnetar::daemon
