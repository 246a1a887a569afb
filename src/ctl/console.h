#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace magnetar::ctl {

// The ring that vmm-supervisor keeps of the guest's console and the VMM's messages. UNAVAILABLE if
// the supervisor is gone: it ends with its VM. Blocks for at most five seconds.
absl::StatusOr<std::string> ReadConsole(const std::string& sandbox_directory);

}  // namespace magnetar::ctl
