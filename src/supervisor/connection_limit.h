#pragma once

#include "magnetar/co.h"
#include "magnetar/event.h"

namespace magnetar::supervisor {

// Counts what one accept loop has open and holds it back at the limit.
class ConnectionLimit {
 public:
  ConnectionLimit(const asio::any_io_executor& executor, int limit)
      : freed_(executor), left_(limit) {}

  Co<void> Acquire() {
    while (left_ == 0) {
      auto wait = freed_.Wait();
      co_await std::move(wait);
    }
    --left_;
  }

  // False at the limit.
  bool TryAcquire() {
    if (left_ == 0) return false;
    --left_;
    return true;
  }

  void Release() {
    ++left_;
    freed_.NotifyAll();
  }

  // Returns when a connection was released, and at `deadline`.
  Co<void> WaitReleased(Event::Clock::time_point deadline) {
    auto wait = freed_.WaitUntil(deadline);
    co_await std::move(wait);
  }

 private:
  Event freed_;
  int left_;
};

}  // namespace magnetar::supervisor
