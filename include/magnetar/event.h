#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "magnetar/co.h"

namespace magnetar {

// Wakes coroutines that wait for a condition to change:
//   while (!condition) { auto wait = changed.Wait(); co_await std::move(wait); }
// Nothing is remembered: a Notify with nobody waiting is lost, which is why the
// condition is looked at first. One executor (a thread or a strand) for everything.
class Event {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Event(const asio::any_io_executor& executor)
      : timer_(executor, Clock::time_point::max()) {}

  void NotifyAll() { timer_.cancel(); }

  // Returns at the next NotifyAll, and early when the coroutine is cancelled.
  Co<void> Wait() { co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable)); }

  // Also returns at `deadline`. For a single waiter: the deadline is the event's.
  Co<void> WaitUntil(Clock::time_point deadline) {
    timer_.expires_at(deadline);
    co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
  }

 private:
  asio::steady_timer timer_;
};

// Whether a coroutine was cancelled. It asks with
//   const auto cancellation = co_await asio::this_coro::cancellation_state;
// which, unlike any other co_await, does not throw once it was.
inline bool Cancelled(const asio::cancellation_state& state) {
  return state.cancelled() != asio::cancellation_type::none;
}

}  // namespace magnetar
