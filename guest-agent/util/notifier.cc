#include "guest-agent/util/notifier.h"

#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>

namespace magnetar::guest {
namespace {

Co<bool> Cancelled() {
  const asio::cancellation_state state = co_await asio::this_coro::cancellation_state;
  co_return state.cancelled() != asio::cancellation_type::none;
}

}  // namespace

Notifier::Notifier(const asio::any_io_executor& executor)
    : timer_(executor, asio::steady_timer::time_point::max()) {}

Co<void> Notifier::Wait() {
  boost::system::error_code ignored;
  co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

Co<void> Notifier::WaitUntil(std::chrono::steady_clock::time_point deadline) {
  // The alarm may already be on its way when the wait ends, and find nobody left.
  auto waiting = std::make_shared<bool>(true);
  asio::steady_timer alarm(timer_.get_executor(), deadline);
  alarm.async_wait([this, waiting](const boost::system::error_code& error) {
    if (!error && *waiting) Notify();
  });
  co_await Wait();
  *waiting = false;
}

void Notifier::Notify() { timer_.cancel(); }

// A notifier wakes all its waiters: another one's deadline is not this one's end.
Co<bool> Event::Wait() {
  while (!set_) {
    co_await notifier_.Wait();
    const bool cancelled = co_await Cancelled();
    if (cancelled) break;
  }
  co_return set_;
}

Co<bool> Event::WaitFor(std::chrono::nanoseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() +
                        std::chrono::duration_cast<std::chrono::steady_clock::duration>(timeout);
  co_return co_await WaitUntil(deadline);
}

Co<bool> Event::WaitUntil(std::chrono::steady_clock::time_point deadline) {
  while (!set_ && std::chrono::steady_clock::now() < deadline) {
    co_await notifier_.WaitUntil(deadline);
    const bool cancelled = co_await Cancelled();
    if (cancelled) break;
  }
  co_return set_;
}

}  // namespace magnetar::guest
