#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>

#include "magnetar/co.h"

namespace magnetar::supervisor {

// Gives memory back once things have been quiet for a while: free heap, and the pages of
// code that starting and serving needed (they come back from the page cache at
// their next use). There is a supervisor for every VM, and most VMs idle.
class IdleTrim {
 public:
  static constexpr std::chrono::seconds kQuiet{10};

  explicit IdleTrim(const asio::any_io_executor& executor) : timer_(executor) {}
  // Something happened: the quiet time begins again.
  void Activity();

 private:
  asio::steady_timer timer_;
};

}  // namespace magnetar::supervisor
