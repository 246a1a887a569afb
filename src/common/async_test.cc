// What coroutines wait with: events, and blocking calls on a pool.
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <latch>
#include <memory>
#include <string>
#include <thread>

#include "magnetar/blocking.h"
#include "magnetar/event.h"

namespace magnetar {
namespace {

using std::chrono::milliseconds;

Co<void> WaitFor(Event& event, const bool& condition, int* woken) {
  while (!condition) {
    auto wait = event.Wait();
    co_await std::move(wait);
  }
  ++*woken;
}

TEST(EventTest, WakesEveryoneAndOnlyWhenTheConditionHolds) {
  asio::io_context io;
  Event event(io.get_executor());
  bool condition = false;
  int woken = 0;
  for (int i = 0; i < 3; ++i) {
    asio::co_spawn(io, WaitFor(event, condition, &woken), asio::detached);
  }
  io.poll();
  event.NotifyAll();
  io.poll();
  EXPECT_EQ(woken, 0);
  condition = true;
  event.NotifyAll();
  io.run();
  EXPECT_EQ(woken, 3);
}

// Counts how often the condition was looked at.
Co<void> CountingWait(Event& event, const bool& condition, int* looks) {
  while (!condition) {
    ++*looks;
    auto wait = event.Wait();
    co_await std::move(wait);
  }
}

TEST(EventTest, ADeadlineThatPassedIsForgotten) {
  asio::io_context io;
  Event event(io.get_executor());
  bool condition = false;
  int looks = 0;
  auto both = [&]() -> Co<void> {
    auto until = event.WaitUntil(Event::Clock::now());
    co_await std::move(until);
    auto wait = CountingWait(event, condition, &looks);
    co_await std::move(wait);
  };
  asio::co_spawn(io, both(), asio::detached);
  // Nothing is left to do but to wait, which takes no turns.
  while (looks == 0) io.run_one();
  for (int i = 0; i < 100; ++i) io.poll_one();
  EXPECT_EQ(looks, 1);
  condition = true;
  event.NotifyAll();
  io.run();
}

TEST(EventTest, WaitersWithAndWithoutADeadlineLeaveEachOtherAlone) {
  asio::io_context io;
  Event event(io.get_executor());
  bool condition = false;
  int looks = 0;
  int timed_looks = 0;
  auto timed = [&]() -> Co<void> {
    const auto deadline = Event::Clock::now() + std::chrono::hours(1);
    while (!condition) {
      ++timed_looks;
      auto wait = event.WaitUntil(deadline);
      co_await std::move(wait);
    }
  };
  asio::co_spawn(io, CountingWait(event, condition, &looks), asio::detached);
  asio::co_spawn(io, timed(), asio::detached);
  asio::co_spawn(io, CountingWait(event, condition, &looks), asio::detached);
  for (int i = 0; i < 100; ++i) io.poll_one();
  EXPECT_EQ(looks, 2);
  EXPECT_EQ(timed_looks, 1);
  condition = true;
  event.NotifyAll();
  io.run();
}

TEST(EventTest, Deadline) {
  asio::io_context io;
  Event event(io.get_executor());
  const auto deadline = Event::Clock::now() + milliseconds(10);
  auto wait = [](Event& e, Event::Clock::time_point until) -> Co<void> {
    auto waiting = e.WaitUntil(until);
    co_await std::move(waiting);
  };
  asio::co_spawn(io, wait(event, deadline), asio::detached);
  io.run();
  EXPECT_GE(Event::Clock::now(), deadline);
}

TEST(RunBlockingTest, ResumesOnTheCallersExecutor) {
  asio::io_context io;
  asio::thread_pool pool(1);
  std::thread::id ran_on;
  std::thread::id resumed_on;
  std::unique_ptr<int> result;
  auto test = [&]() -> Co<void> {
    auto run = RunBlocking(pool, [&] {
      ran_on = std::this_thread::get_id();
      return std::make_unique<int>(7);
    });
    result = co_await std::move(run);
    resumed_on = std::this_thread::get_id();
  };
  asio::co_spawn(io, test(), asio::detached);
  io.run();
  pool.join();
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(*result, 7);
  EXPECT_NE(ran_on, std::this_thread::get_id());
  EXPECT_EQ(resumed_on, std::this_thread::get_id());
}

TEST(RunBlockingTest, ACancelledCallerStillSeesTheFunctionThrough) {
  asio::io_context io;
  asio::thread_pool pool(1);
  std::latch go(1);
  std::atomic<bool> ran = false;
  asio::cancellation_signal cancel;
  auto body = [&]() -> Co<void> {
    auto run = RunBlocking(pool, [&] {
      go.wait();
      ran = true;
      return 0;
    });
    (void)co_await std::move(run);
  };
  asio::co_spawn(io, body(),
                 asio::bind_cancellation_slot(cancel.slot(), [](const std::exception_ptr&) {}));
  io.poll();
  cancel.emit(asio::cancellation_type::terminal);
  io.poll();
  go.count_down();
  io.restart();
  io.run();
  pool.join();
  EXPECT_TRUE(ran);
}

}  // namespace
}  // namespace magnetar
