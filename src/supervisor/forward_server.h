#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/hybrid_server.h"

namespace magnetar::supervisor {

// Forwarded connections at once: half of what the guest's channel carries, so that a pod's own
// traffic cannot keep containerd and the daemon out of it.
inline constexpr int kMaxForwards = 512;

// The port to which a connection went before netfilter redirected it, IPv4 or IPv6.
absl::StatusOr<uint16_t> OriginalPort(int socket);

// Serves the pod's loopback: each connection that was redirected to the listener
// is relayed to its own port in the guest, through the agent's forward port. Ends with the
// listener; an error if that breaks.
Co<absl::Status> ServeForward(AsyncFd& listener, GuestAccess access, uint32_t agent_port);

}  // namespace magnetar::supervisor
