#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>

#include "magnetar/co.h"

namespace magnetar::guest {

// A condition variable for coroutines of one thread. Wait() returns at the next
// Notify() (or when the waiter is cancelled): check the condition again. Nothing
// is lost as long as no co_await stands between the check and Wait().
// It must outlive its waiters.
class Notifier {
 public:
  explicit Notifier(const asio::any_io_executor& executor);

  Co<void> Wait();
  // Returns at `deadline` at the latest.
  Co<void> WaitUntil(std::chrono::steady_clock::time_point deadline);
  void Notify();

 private:
  asio::steady_timer timer_;
};

// A fact that becomes true once and stays so.
class Event {
 public:
  explicit Event(const asio::any_io_executor& executor) : notifier_(executor) {}

  bool IsSet() const { return set_; }
  void Set() {
    set_ = true;
    notifier_.Notify();
  }
  // Returns at once if it is set. False: the waiter was cancelled, or the time ran out.
  Co<bool> Wait();
  Co<bool> WaitFor(std::chrono::nanoseconds timeout);
  Co<bool> WaitUntil(std::chrono::steady_clock::time_point deadline);

 private:
  Notifier notifier_;
  bool set_ = false;
};

}  // namespace magnetar::guest
