#pragma once

#include <string>
#include <vector>

namespace magnetar::shim {

// containerd-shim-magnetar-v1: no shim process runs for a pod, but containerd wants the binary
// that a runtime's name resolves to, for `-info` and for `delete` after a task's connection
// closed. Answers on descriptor 1, complains on 2, returns the exit status.
int Run(const std::vector<std::string>& words, const std::string& default_run_dir);

}  // namespace magnetar::shim
