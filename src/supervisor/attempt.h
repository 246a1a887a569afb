#pragma once

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/gate.h"

namespace magnetar::supervisor {

// What bounds an attempt.
struct AttemptBounds {
  // Zero: no limit.
  std::chrono::nanoseconds limit{0};
  // For whom it is made; nullptr: whoever it is, need not be watched.
  AsyncFd* client = nullptr;
};

namespace internal {

template <typename T>
struct Attempt {
  explicit Attempt(const asio::any_io_executor& executor) : timer(executor), done(executor) {}

  void Stop(absl::Status why) {
    // Both the timer and the work may have completed before either was heard.
    if (result.has_value() || stopped.has_value()) return;
    stopped = std::move(why);
    cancel.emit(asio::cancellation_type::terminal);
  }

  asio::cancellation_signal cancel;
  asio::steady_timer timer;
  std::optional<absl::Status> stopped;
  std::optional<absl::StatusOr<T>> result;
  Gate done;
};

}  // namespace internal

// Runs `work` to its end, and cancels it, DEADLINE_EXCEEDED, when its time is up, or, UNAVAILABLE,
// when the client has gone. One thread.
template <typename T>
Co<absl::StatusOr<T>> Bounded(AttemptBounds bounds, Co<absl::StatusOr<T>> work) {
  auto executor = co_await asio::this_coro::executor;
  auto attempt = std::make_shared<internal::Attempt<T>>(executor);
  asio::co_spawn(
      executor, std::move(work),
      asio::bind_cancellation_slot(attempt->cancel.slot(),
                                   [attempt](std::exception_ptr thrown, absl::StatusOr<T> result) {
                                     // A coroutine that is cancelled may end by an exception.
                                     if (thrown) result = absl::CancelledError("cancelled");
                                     attempt->result = std::move(result);
                                     attempt->done.Open();
                                   }));
  if (bounds.limit.count() > 0) {
    attempt->timer.expires_after(bounds.limit);
    attempt->timer.async_wait([attempt](boost::system::error_code error) {
      if (!error) attempt->Stop(absl::DeadlineExceededError("took too long"));
    });
  }
  if (bounds.client != nullptr) {
    bounds.client->async_wait(AsyncFd::wait_error,
                              [attempt, client = bounds.client](boost::system::error_code error) {
                                if (error || attempt->done.is_open() || !HungUp(*client)) return;
                                attempt->Stop(absl::UnavailableError("the client has gone"));
                              });
  }
  auto done = attempt->done.Wait();
  co_await std::move(done);
  attempt->timer.cancel();
  boost::system::error_code ignored;
  if (bounds.client != nullptr) bounds.client->cancel(ignored);
  // A result that comes too late is none.
  if (attempt->stopped.has_value()) co_return *attempt->stopped;
  co_return *std::move(attempt->result);
}

}  // namespace magnetar::supervisor
