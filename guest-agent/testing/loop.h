#pragma once

#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "magnetar/co.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"
#include "src/common/streaming/testing.h"

namespace magnetar::guest::testing {

// An event loop on the test's own thread.
class Loop {
 public:
  asio::io_context context{1};
  asio::any_io_executor executor() { return context.get_executor(); }

  // Runs until the coroutine is done; fails the test by an exception after 20 s.
  template <typename T>
  T Run(Co<T> work) {
    std::optional<T> result;
    std::exception_ptr thrown;
    asio::co_spawn(context, std::move(work), [&](std::exception_ptr error, T value) {
      thrown = error;
      if (!error) result = std::move(value);
    });
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!result.has_value() && !thrown) {
      context.restart();
      if (context.run_one_until(deadline) == 0 && std::chrono::steady_clock::now() >= deadline) {
        throw std::runtime_error("the loop stands still");
      }
    }
    if (thrown) std::rethrow_exception(thrown);
    return std::move(*result);
  }
  void Run(Co<void> work) {
    auto body = [](Co<void> w) -> Co<bool> {
      co_await std::move(w);
      co_return true;
    };
    Run(body(std::move(work)));
  }
  // Runs until `condition` holds; fails the test by an exception after 20 s.
  template <typename Condition>
  void Until(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() >= deadline) {
        throw std::runtime_error("what was waited for does not come");
      }
      // Some conditions are not the loop's own events.
      context.restart();
      context.run_one_for(std::chrono::milliseconds(5));
    }
  }
  // Lets everything that is ready happen. For what must not come: what must is awaited
  // with Until().
  void Settle(std::chrono::milliseconds time = std::chrono::milliseconds(50)) {
    context.restart();
    context.run_for(time);
  }
};

// A connected pair: a ttrpc client here, `services` served at the other end.
class Wire {
 public:
  Wire(Loop& loop, std::shared_ptr<const ttrpc::Services> services) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
    asio::co_spawn(loop.context, ttrpc::ServeConnection(UniqueFd(pair[1]), std::move(services)),
                   asio::detached);
    client = ttrpc::Client::Create(loop.executor(), UniqueFd(pair[0]));
  }
  std::shared_ptr<ttrpc::Client> client;
};

using streaming::testing::Frames;
using streaming::testing::OpenStdio;
using streaming::testing::ReadOutput;

}  // namespace magnetar::guest::testing
