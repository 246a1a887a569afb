#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace magnetar::shim {

// The run directory of the sandbox to which a task's bundle belongs. containerd writes the task's
// address into the bundle ("bootstrap.json", "hvsock:///<run>/<id>/vm.vsock:1024"), and the
// sandbox's id ("sandbox"), which is looked up below `default_run_dir` where the address
// is missing. Facts: containerd v2.1.9 core/runtime/v2/shim_manager.go. NOT_FOUND if neither tells.
absl::StatusOr<std::string> FindSandbox(const std::string& bundle,
                                        const std::string& default_run_dir);

}  // namespace magnetar::shim
