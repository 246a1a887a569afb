#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/manager.h"

namespace magnetar::daemon {

// Makes this process the only daemon of a run directory, for as long as the
// result is held. ALREADY_EXISTS names the directory if there is another.
absl::StatusOr<UniqueFd> LockRunDirectory(const std::string& run_dir);

// The gRPC server on the daemon's unix socket, mode 0600.
class ControllerServer {
 public:
  virtual ~ControllerServer() = default;
  // Takes the place of a socket that no one serves; FAILED_PRECONDITION if
  // someone does, or if the path is something else than a socket.
  static absl::StatusOr<std::unique_ptr<ControllerServer>> Start(const Environment* environment,
                                                                 SandboxManager* manager);
  // Refuses new calls, lets those in flight end for a short while, removes the socket.
  virtual void Stop() = 0;
};

}  // namespace magnetar::daemon
