#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace magnetar::daemon {

// A CID that no VM of this host has at the moment (vhost's VHOST_VSOCK_SET_GUEST_CID
// refuses one in use). Random, so that two daemons do not race for the same one.
absl::StatusOr<uint32_t> FindGuestCid();

}  // namespace magnetar::daemon
