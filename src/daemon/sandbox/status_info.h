#pragma once

#include <string>

#include "src/daemon/sandbox/record.h"
#include "src/daemon/sandbox/sandbox.h"

namespace magnetar::daemon {

// What Status answers as info["info"]: a JSON object in the shape of CRI's SandboxInfo (containerd
// internal/cri/types/sandbox_info.go; newer ones decode it and write it again, so it must always be
// valid, and has no keys but theirs).
std::string StatusInfoJson(const SandboxSnapshot& snapshot, const Record& record);

// What it answers as info["magnetar"]: a JSON object of what is known of the VM.
std::string VmInfoJson(const SandboxSnapshot& snapshot, const Record& record);

}  // namespace magnetar::daemon
