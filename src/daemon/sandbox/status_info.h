#pragma once

#include <string>

#include "src/daemon/sandbox/record.h"
#include "src/daemon/sandbox/sandbox.h"

namespace magnetar::daemon {

// What Status answers as info["info"]: a JSON object in the shape of CRI's SandboxInfo (containerd
// internal/cri/types/sandbox_info.go; newer ones decode it, so it must always be valid), with keys
// of our own under "magnetar".
std::string StatusInfoJson(const SandboxSnapshot& snapshot, const Record& record);

}  // namespace magnetar::daemon
