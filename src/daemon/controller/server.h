#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/manager.h"

namespace magnetar::daemon {

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
