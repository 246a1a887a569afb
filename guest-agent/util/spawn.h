#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace magnetar::guest {

// A child process to start. `argv[0]` is an absolute path; no shell is involved.
struct SpawnRequest {
  std::vector<std::string> argv;
  // "NAME=value", besides PATH.
  std::vector<std::string> environment;
  // Borrowed descriptors that become 0, 1 and 2; -1: /dev/null.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
};

// Starts it in a session of its own, with default signal handling, no
// environment but PATH and the request's, and no other descriptor. Blocks until it has exec'ed. The
// caller waits for the pid (see init/reaper.h).
absl::StatusOr<pid_t> Spawn(const SpawnRequest& request);

}  // namespace magnetar::guest
