#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"
#include "src/supervisor/hybrid_server.h"

namespace magnetar::supervisor {

// Connects a process of the VM's to a port of the guest, once the guest has knocked, and relays
// until either closes. `socket` is non-blocking. An error: the guest does not take it. One that
// ends without a knock is none.
Co<absl::Status> ServeGuestStream(UniqueFd socket, uint32_t port, GuestAccess access);

}  // namespace magnetar::supervisor
