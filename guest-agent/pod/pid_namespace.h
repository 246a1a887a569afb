#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace magnetar::guest {

// Starts `binary` as the first process of a new pid namespace, with kPauseArgument, and binds
// the namespace to `path`. Returns its pid. A container that may trace processes reaches
// whatever this one has, so it has nothing: an empty root in a mount namespace of its own,
// no capability and no way to get one, no descriptor, nobody's user id. `binary` is static.
absl::StatusOr<pid_t> StartPidNamespace(const std::string& binary, const std::string& path);

// Binds the pid namespace of the process that `pidfd` holds to `path`. NOT_FOUND: it has ended.
absl::Status BindPidNamespace(int pidfd, pid_t pid, const std::string& path);

inline constexpr char kPauseArgument[] = "--pause";

// What that process does: reaps for ever.
[[noreturn]] void PauseMain();

}  // namespace magnetar::guest
