#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"

namespace magnetar::guest {

// What a process of a container gets as 0, 1 and 2. Borrowed; -1: /dev/null.
struct ProcessStdio {
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
  // Set: the process gets a terminal, whose master arrives at this unix socket.
  std::string console_socket;
};

// The program that makes containers (crun; a fake in tests). All calls run on the
// caller's executor and do not block it. Errors carry what the program said.
//
// Create and Exec leave a process that the caller reaps: hold a Reaper::Window.
class OciRuntime {
 public:
  virtual ~OciRuntime() = default;
  // From `bundle`/config.json. The pid of the container's first process, which
  // waits for Start.
  virtual Co<absl::StatusOr<pid_t>> Create(std::string id, std::string bundle,
                                           ProcessStdio stdio) = 0;
  virtual Co<absl::Status> Start(std::string id) = 0;
  // `process_file`: an OCI process as JSON. The pid of the process, which runs.
  virtual Co<absl::StatusOr<pid_t>> Exec(std::string id, std::string process_file,
                                         ProcessStdio stdio) = 0;
  // Kills what is left of the container and forgets it. An unknown one is fine.
  virtual Co<absl::Status> Delete(std::string id) = 0;
  // `resources_file`: OCI LinuxResources as JSON.
  virtual Co<absl::Status> Update(std::string id, std::string resources_file) = 0;
};

}  // namespace magnetar::guest
