#pragma once

#include "src/daemon/options.h"

namespace magnetar::daemon {

// The daemon, from its start to SIGTERM. Logs errors; the process's exit code.
int RunDaemon(Options options);

}  // namespace magnetar::daemon
