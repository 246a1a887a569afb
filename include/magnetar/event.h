#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <utility>

#include "magnetar/co.h"

namespace magnetar {

// Wakes coroutines that wait for a condition to change:
//   while (!condition) { auto wait = changed.Wait(); co_await std::move(wait); }
// Nothing is remembered: a Notify with nobody waiting is lost, which is why the
// condition is looked at first. A wait may also end without a reason. One executor (a thread or
// a strand) for everything; an event outlives its waiters.
class Event {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Event(const asio::any_io_executor& executor)
      : timer_(executor, Clock::time_point::max()) {}

  void NotifyAll() { timer_.cancel(); }

  // Returns at the next NotifyAll, and early when the coroutine is cancelled.
  Co<void> Wait() {
    auto wait = timer_.async_wait(asio::as_tuple(asio::use_awaitable));
    co_await std::move(wait);
  }

  // Also returns at `deadline`, each waiter at its own; the others only look once more.
  Co<void> WaitUntil(Clock::time_point deadline) {
    // The alarm may already be on its way when the wait ends, and find nobody left.
    const auto waiting = std::make_shared<bool>(true);
    struct Guard {
      bool& waiting;
      ~Guard() { waiting = false; }
    } guard{*waiting};
    // Not the event's own timer, which would then stay expired for everyone.
    asio::steady_timer alarm(timer_.get_executor(), deadline);
    alarm.async_wait([this, waiting](const boost::system::error_code& error) {
      if (!error && *waiting) NotifyAll();
    });
    auto wait = Wait();
    co_await std::move(wait);
  }

 private:
  asio::steady_timer timer_;  // never expires
};

// Whether a coroutine was cancelled. It asks with
//   const auto cancellation = co_await asio::this_coro::cancellation_state;
// which, unlike any other co_await, does not throw once it was.
inline bool Cancelled(const asio::cancellation_state& state) {
  return state.cancelled() != asio::cancellation_type::none;
}

}  // namespace magnetar
