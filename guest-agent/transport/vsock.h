#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

absl::StatusOr<UniqueFd> ListenVsock(uint32_t port);

// Accepts for ever. Only the host (CID 2) gets in: AF_VSOCK knows no network
// namespaces, so that a container could dial too.
Co<void> AcceptVsock(UniqueFd listener, std::function<void(UniqueFd)> accept);

// Tells the host that everything listens, by a connection without contents. Blocks.
absl::Status KnockVsock(uint32_t port);

}  // namespace magnetar::guest
