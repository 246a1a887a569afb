#pragma once

#include <memory>
#include <string_view>

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {

// Is shown what passes.
class RelayListener {
 public:
  virtual ~RelayListener() = default;
  // Before it is passed on.
  virtual void FromA(std::string_view bytes) = 0;
  virtual void FromB(std::string_view bytes) = 0;
};

// Copies between two connected non-blocking sockets, both ways, until both
// directions have ended. A half-close is passed on. A side that takes no more, but may still
// have something to say (a server that refuses an upload), is heard to its end, while what is sent
// to it is thrown away. A peer that is gone altogether ends both. Nothing is buffered but what one
// write has left over, 64 KiB at most for each direction.
Co<void> Relay(UniqueFd a, UniqueFd b, std::unique_ptr<RelayListener> listener = nullptr);

}  // namespace magnetar::supervisor
