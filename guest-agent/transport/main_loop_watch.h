#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <cstdint>

#include "magnetar/co.h"

namespace magnetar::guest {

// Says for how long the main loop has not turned, from another thread and
// without waiting for it: a tick is posted to the loop, and its age while it has
// not run is the answer.
class MainLoopWatch {
 public:
  explicit MainLoopWatch(const asio::any_io_executor& main_loop) : main_loop_(main_loop) {}
  MainLoopWatch(const MainLoopWatch&) = delete;
  MainLoopWatch& operator=(const MainLoopWatch&) = delete;

  // Milliseconds; 0 if the last tick has run. Posts another then.
  uint64_t AgeMs();

 private:
  asio::any_io_executor main_loop_;
  // CLOCK_MONOTONIC at which the tick that has not run was posted; 0: none.
  std::atomic<int64_t> posted_ns_ = 0;
};

}  // namespace magnetar::guest
