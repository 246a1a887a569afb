#pragma once

#include <memory>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/gate.h"
#include "src/supervisor/guest_link.h"
#include "src/supervisor/idle_trim.h"
#include "src/supervisor/kill_watch.h"
#include "src/supervisor/outputs.h"

namespace magnetar::supervisor {

struct HybridLimits {
  // Connections at once on vm.vsock. More wait in the socket's backlog.
  int connections = 1024;
  // Of those, how many may lead to other ports than the agent's and its heartbeat's. More are
  // refused: a guest is killed that answers no heartbeat, and one that cannot be asked must not
  // look like it.
  int others = 960;
};

// What the servers share; outlives them.
struct GuestAccess {
  std::shared_ptr<GuestLink> link;
  // Open when the guest has knocked. Nobody is let through before.
  Gate* ready;
  // Opens at the knock, or when the VM ends without one: then who waits is sent away.
  Gate* ready_or_ending;
  IdleTrim* trim;
  // Of the task port.
  std::shared_ptr<Outputs> outputs;
  KillWatch* kills;
};

// Serves `vm.vsock` in the hybrid protocol until the listener is closed: each
// connection names a port, gets "OK <port>\n" once the guest has accepted, and is relayed. A
// refusal closes it at once. What comes for the task port gets its answer at once, since it has to
// speak before it is known whether it opens an output, which Outputs serves. An error if the
// listener breaks.
Co<absl::Status> ServeHybrid(AsyncFd& listener, GuestAccess access, HybridLimits limits = {});

}  // namespace magnetar::supervisor
