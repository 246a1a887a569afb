#pragma once

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {

// Copies between two connected non-blocking sockets, both ways, until both
// directions have ended. A half-close is passed on. A side that takes no more, but may still
// have something to say (a server that refuses an upload), is heard to its end, while what is sent
// to it is thrown away. A peer that is gone altogether ends both. Nothing is buffered but what one
// write has left over, 64 KiB at most for each direction.
Co<void> Relay(UniqueFd a, UniqueFd b);

}  // namespace magnetar::supervisor
