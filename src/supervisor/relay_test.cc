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
  // Until everything that can go on has.
  void Run() {
    size_t ran;
    do {
      context_.restart();
      ran = context_.poll();
    } while (ran > 0);
  }

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

// A server that refuses an upload: it answers, closes, and leaves the rest unread.
TEST_F(RelayTest, AnAnswerOutlivesTheRequestThatNobodyReads) {
  const std::string chunk(64 << 10, 'x');
  ssize_t n;
  do {
    n = ::send(client_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    Run();
  } while (n > 0);
  ::send(guest_.get(), "413", 3, 0);
  guest_.reset();
  std::string answer;
  bool eof = false;
  RunUntil(context_, [&] {
    answer += ReadAvailable(client_.get(), &eof);
    return eof;
  });
  EXPECT_EQ(answer, "413");
  RunUntil(context_, [this] { return done_; });
}

// Nobody reads, but the answer is still on its way: the client gets to the end of its request.
TEST_F(RelayTest, WhatNobodyReadsIsThrownAway) {
  ::shutdown(guest_.get(), SHUT_RD);
  const std::string chunk(64 << 10, 'x');
  size_t sent = 0;
  while (sent < size_t{8} << 20) {
    const ssize_t n = ::send(client_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (n > 0) sent += static_cast<size_t>(n);
    Run();
  }
  EXPECT_FALSE(done_);
  ::send(guest_.get(), "413", 3, 0);
  Run();
  EXPECT_EQ(ReadAvailable(client_.get()), "413");
  guest_.reset();
  RunUntil(context_, [this] { return done_; });
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
