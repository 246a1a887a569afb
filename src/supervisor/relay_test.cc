#include "src/supervisor/relay.h"

#include <gtest/gtest.h>

#include <boost/asio/detached.hpp>

#include "src/supervisor/async_test_util.h"

namespace magnetar::supervisor {
namespace {

class RelayTest : public testing::Test {
 protected:
  RelayTest() {
    auto [a, a_far] = SocketPair();
    auto [b, b_far] = SocketPair();
    client_ = std::move(a_far);
    guest_ = std::move(b_far);
    asio::co_spawn(context_, Relay(std::move(a), std::move(b)),
                   [this](std::exception_ptr) { done_ = true; });
  }
  void Run() { context_.restart(), context_.run_for(std::chrono::milliseconds(10)); }

  asio::io_context context_;
  UniqueFd client_, guest_;
  bool done_ = false;
};

TEST_F(RelayTest, BothWays) {
  ::send(client_.get(), "ping", 4, 0);
  ::send(guest_.get(), "pong", 4, 0);
  Run();
  EXPECT_EQ(ReadAvailable(guest_.get()), "ping");
  EXPECT_EQ(ReadAvailable(client_.get()), "pong");
  EXPECT_FALSE(done_);
}

TEST_F(RelayTest, HalfCloseGoesThrough) {
  ::send(client_.get(), "request", 7, 0);
  ::shutdown(client_.get(), SHUT_WR);
  Run();
  bool eof = false;
  EXPECT_EQ(ReadAvailable(guest_.get(), &eof), "request");
  EXPECT_TRUE(eof);
  EXPECT_FALSE(done_);
  ::send(guest_.get(), "answer", 6, 0);
  ::shutdown(guest_.get(), SHUT_WR);
  Run();
  eof = false;
  EXPECT_EQ(ReadAvailable(client_.get(), &eof), "answer");
  EXPECT_TRUE(eof);
  EXPECT_TRUE(done_);
}

TEST_F(RelayTest, APeerThatIsGoneEndsBoth) {
  client_.reset();
  Run();
  EXPECT_TRUE(done_);
  bool eof = false;
  ReadAvailable(guest_.get(), &eof);
  EXPECT_TRUE(eof);
}

TEST_F(RelayTest, APeerThatGoesAfterItsHalfCloseEndsBoth) {
  ::shutdown(client_.get(), SHUT_WR);
  Run();
  EXPECT_FALSE(done_);
  client_.reset();
  Run();
  EXPECT_TRUE(done_);
}

// More than any buffer, to a reader that stalls in between.
TEST_F(RelayTest, LosesNothing) {
  std::string data(5 << 20, 0);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 2654435761u >> 13);
  size_t sent = 0;
  std::string received;
  for (int turn = 0; received.size() < data.size(); ++turn) {
    if (sent < data.size()) {
      const ssize_t n = ::send(client_.get(), data.data() + sent, data.size() - sent, MSG_DONTWAIT);
      if (n > 0) sent += static_cast<size_t>(n);
      if (sent == data.size()) ::shutdown(client_.get(), SHUT_WR);
    }
    context_.restart();
    context_.poll();
    if (turn % 3 == 0) received += ReadAvailable(guest_.get());
    ASSERT_LT(turn, 100000);
  }
  EXPECT_TRUE(received == data);
}

TEST_F(RelayTest, AStalledReaderCostsABoundedAmount) {
  const std::string chunk(64 << 10, 'x');
  size_t accepted = 0;
  for (int i = 0; i < 1000; ++i) {
    const ssize_t n = ::send(client_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (n > 0) accepted += static_cast<size_t>(n);
    context_.restart();
    context_.poll();
  }
  EXPECT_LT(accepted, size_t{2} << 20);
}

}  // namespace
}  // namespace magnetar::supervisor
