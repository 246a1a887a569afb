#include "guest-agent/util/notifier.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>

namespace magnetar::guest {

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

Co<bool> Event::Wait() {
  if (!set_) co_await notifier_.Wait();
  co_return set_;
}

Co<bool> Event::WaitFor(std::chrono::nanoseconds timeout) {
  if (!set_) {
    const auto deadline = std::chrono::steady_clock::now() +
                          std::chrono::duration_cast<std::chrono::steady_clock::duration>(timeout);
    co_await notifier_.WaitUntil(deadline);
  }
  co_return set_;
}

}  // namespace magnetar::guest
