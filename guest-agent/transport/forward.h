#pragma once

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// Serves one forwarded connection (magnetar/forward.h) until both halves have
// ended. Runs on the caller's executor.
Co<void> ServeForward(UniqueFd connection);

}  // namespace magnetar::guest
