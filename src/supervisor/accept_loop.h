#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/connection_limit.h"

namespace magnetar::supervisor {

// Hands connections to `serve`, which releases each one's place in `limit` when it is through.
// Short of descriptors or memory it goes on once a connection has ended, or a second
// later. OK once the listener has been closed; an error if it accepts no more.
Co<absl::Status> AcceptLoop(AsyncFd& listener, std::shared_ptr<ConnectionLimit> limit,
                            std::function<void(UniqueFd)> serve);

}  // namespace magnetar::supervisor
