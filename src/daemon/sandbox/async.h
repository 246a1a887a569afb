#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "magnetar/co.h"
#include "magnetar/event.h"

namespace magnetar::daemon {

// Waits on `changed` until `condition()` holds, for at most `limit`; whether it holds then. Many
// may wait at a time.
template <typename Condition>
Co<bool> WaitFor(Event& changed, Condition condition, std::chrono::nanoseconds limit) {
  const auto deadline = Event::Clock::now() + limit;
  // The timer's handler may be on its way when this has ended and `changed` is gone.
  auto waiting = std::make_shared<bool>(true);
  const absl::Cleanup over = [waiting] { *waiting = false; };
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  asio::steady_timer timer(executor, deadline);
  timer.async_wait([&changed, waiting](const boost::system::error_code& error) {
    if (!error && *waiting) changed.NotifyAll();
  });
  while (!condition() && Event::Clock::now() < deadline) {
    auto wait = changed.Wait();
    co_await std::move(wait);
  }
  co_return condition();
}

// A condition that comes true once. One strand for everything.
class AsyncFlag {
 public:
  explicit AsyncFlag(const asio::any_io_executor& executor) : changed_(executor) {}

  bool is_set() const { return set_; }
  void Set() {
    set_ = true;
    changed_.NotifyAll();
  }
  Co<void> Wait() {
    while (!set_) {
      auto wait = changed_.Wait();
      co_await std::move(wait);
    }
  }
  // The same for at most `limit`; whether it is set.
  Co<bool> WaitFor(std::chrono::nanoseconds limit) {
    auto wait = daemon::WaitFor(
        changed_, [this] { return set_; }, limit);
    const bool set = co_await std::move(wait);
    co_return set;
  }

 private:
  Event changed_;
  bool set_ = false;
};

}  // namespace magnetar::daemon
