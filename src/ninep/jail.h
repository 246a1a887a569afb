#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::ninep {

// Takes this process, root with one thread, to where the directory is all that there is, for good:
// a mount namespace of its own whose root it is (the daemon mounts in it what the sandbox shares),
// no network, no capability but for files, and no system call that names a process, connects to
// anybody or runs a program. What is mounted there later appears, but nothing of the host's.
//
// The current directory becomes the process's own list of descriptors, Descriptors(""). Returns the
// directory, O_PATH.
absl::StatusOr<UniqueFd> EnterJail(const std::string& directory);

}  // namespace magnetar::ninep
