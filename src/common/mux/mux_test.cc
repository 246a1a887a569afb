#include "magnetar/mux.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>

#include "src/common/mux/testing.h"

namespace magnetar::mux {
namespace {

TEST_F(MuxTest, CarriesBytesAndHalfCloses) {
  Start();
  auto [near, far] = Open();
  EXPECT_TRUE(*RunFor(io_, WriteAndShutdown(near, "ping")));
  EXPECT_EQ(*RunFor(io_, ReadToEnd(far)), "ping");
  // The other direction is still open.
  EXPECT_TRUE(*RunFor(io_, WriteAndShutdown(far, "pong")));
  EXPECT_EQ(*RunFor(io_, ReadToEnd(near)), "pong");
}

TEST_F(MuxTest, RefusesPortsWithoutListener) {
  Start();
  EXPECT_EQ(Connect(7).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Connect().ok());
}

TEST_F(MuxTest, HostIsSilentUntilTheGuestSpeaks) {
  auto [host_end, guest_end] = SocketPair();
  host_ = Host::Create(std::move(host_end));
  asio::co_spawn(io_, host_->Run(), asio::detached);
  io_.run_for(std::chrono::milliseconds(50));
  char c;
  EXPECT_EQ(::recv(guest_end.get(), &c, 1, MSG_DONTWAIT), -1);
  guest_ = Guest::Create(std::move(guest_end), [](uint32_t, UniqueFd) { return absl::OkStatus(); });
  asio::co_spawn(io_, guest_->Run(), asio::detached);
  EXPECT_TRUE(RunFor(io_, host_->Ready())->ok());
}

TEST_F(MuxTest, EndOfTheChannel) {
  Start();
  auto [near, far] = Open();
  guest_.reset();
  EXPECT_EQ(*RunFor(io_, ReadToEnd(near)), "");
  EXPECT_EQ(Connect().status().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(host_status_.has_value());
  EXPECT_TRUE(host_status_->ok());
  EXPECT_EQ(RunFor(io_, ReadToEnd(far)).value_or("late"), "");
}

TEST_F(MuxTest, ReadyFailsIfTheGuestNeverCame) {
  auto [host_end, guest_end] = SocketPair();
  host_ = Host::Create(std::move(host_end));
  asio::co_spawn(io_, host_->Run(), asio::detached);
  guest_end.reset();
  EXPECT_EQ(RunFor(io_, host_->Ready())->code(), absl::StatusCode::kUnavailable);
}

TEST_F(MuxTest, CloseEndsBothSides) {
  Start();
  auto [near, far] = Open();
  host_->Close();
  EXPECT_EQ(*RunFor(io_, ReadToEnd(near)), "");
  EXPECT_EQ(*RunFor(io_, ReadToEnd(far)), "");
  EXPECT_TRUE(guest_status_.has_value() && guest_status_->ok());
}

TEST_F(MuxTest, LargeDataBothWaysAtOnce) {
  Start();
  auto [near, far] = Open();
  const std::string up = Pattern(8 << 20, 1);
  const std::string down = Pattern(8 << 20, 2);
  asio::co_spawn(io_, WriteAndShutdown(near, up), asio::detached);
  asio::co_spawn(io_, WriteAndShutdown(far, down), asio::detached);
  std::optional<std::string> got_down;
  asio::co_spawn(io_, ReadToEnd(near),
                 [&](const std::exception_ptr&, std::string data) { got_down = std::move(data); });
  const auto got_up = RunFor(io_, ReadToEnd(far));
  io_.restart();
  while (!got_down.has_value() && io_.run_one_for(magnetar::testing::kHang) > 0) {
  }
  EXPECT_TRUE(got_up == up);
  EXPECT_TRUE(got_down == down);
}

TEST_F(MuxTest, AStalledReaderStallsAlone) {
  Start();
  constexpr int kStalled = 24;
  // More stalled streams than would fit the connection's window together.
  std::deque<std::pair<Socket, Socket>> stalled;  // their addresses stay
  for (int i = 0; i < kStalled; ++i) {
    stalled.push_back(Open());
    asio::co_spawn(io_, WriteAndShutdown(stalled.back().second, Pattern(1 << 20, i)),
                   asio::detached);
  }
  io_.restart();
  io_.run_for(std::chrono::milliseconds(300));
  auto [near, far] = Open();
  const std::string data = Pattern(8 << 20, 99);
  asio::co_spawn(io_, WriteAndShutdown(far, data), asio::detached);
  EXPECT_TRUE(RunFor(io_, ReadToEnd(near)) == data);
  for (int i = 0; i < kStalled; ++i) {
    EXPECT_TRUE(RunFor(io_, ReadToEnd(stalled[i].first)) == Pattern(1 << 20, i)) << i;
  }
}

TEST_F(MuxTest, DataFollowedByFullCloseArrivesWhole) {
  Start();
  auto [near, far] = Open();
  const std::string data = Pattern(1 << 20, 5);
  auto write_and_close = [](Socket socket, std::string bytes) -> Co<void> {
    auto write =
        asio::async_write(socket, asio::buffer(bytes), asio::as_tuple(asio::use_awaitable));
    (void)co_await std::move(write);
    socket.close();
  };
  asio::co_spawn(io_, write_and_close(std::move(far), data), asio::detached);
  io_.restart();
  io_.run_for(std::chrono::milliseconds(100));  // the reader is slow
  EXPECT_TRUE(RunFor(io_, ReadToEnd(near)) == data);
}

Co<bool> WriteUntilError(Socket& socket) {
  const std::string chunk(65536, 'x');
  while (true) {
    auto write =
        asio::async_write(socket, asio::buffer(chunk), asio::as_tuple(asio::use_awaitable));
    auto [error, n] = co_await std::move(write);
    if (error) co_return true;
  }
}

TEST_F(MuxTest, AClosedReaderStopsTheWriter) {
  Start();
  auto [near, far] = Open();
  near.close();
  EXPECT_TRUE(RunFor(io_, WriteUntilError(far)).has_value());
}

TEST_F(MuxTest, ManyStreamsInARowLeaveNothing) {
  Limits limits;
  limits.max_streams = 4;
  limits.reserved_streams = 0;
  Start(limits);
  for (int i = 0; i < 200; ++i) {
    auto [near, far] = Open();
    EXPECT_TRUE(*RunFor(io_, WriteAndShutdown(near, "x")));
    EXPECT_EQ(*RunFor(io_, ReadToEnd(far)), "x");
    EXPECT_TRUE(*RunFor(io_, WriteAndShutdown(far, "y")));
    EXPECT_EQ(*RunFor(io_, ReadToEnd(near)), "y");
  }
  for (int i = 0; i < 200; ++i) {
    auto [near, far] = Open();
    near.close();
    EXPECT_EQ(RunFor(io_, ReadToEnd(far)).value_or("late"), "");
  }
}

TEST_F(MuxTest, TooManyStreams) {
  Limits limits;
  limits.max_streams = 2;
  limits.reserved_streams = 0;
  Start(limits);
  auto first = Open();
  auto second = Open();
  EXPECT_EQ(Connect().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(MuxTest, ForwardedConnectionsLeaveRoomForTheRest) {
  Limits limits;
  limits.max_streams = 2;
  limits.reserved_streams = 1;
  Start(limits);
  const auto first = Connect(kForwardPort);
  const auto second = Connect(kForwardPort);
  EXPECT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(Connect(kForwardPort).status().code(), absl::StatusCode::kResourceExhausted);
  const auto reserved = Connect(kPort);
  EXPECT_TRUE(reserved.ok()) << reserved.status();
  EXPECT_EQ(Connect(kPort).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(MuxTest, AGuestThatDoesNotAnswerIsNotWaitedForForEver) {
  Limits limits;
  limits.max_streams = 1;
  limits.reserved_streams = 0;
  limits.connect_timeout = std::chrono::milliseconds(10);
  auto [host_end, guest_end] = SocketPair();
  host_ = Host::Create(std::move(host_end), limits);
  asio::co_spawn(io_, host_->Run(), asio::detached);
  const std::string settings("\0\0\0\4\0\0\0\0\0", 9);
  ASSERT_EQ(::send(guest_end.get(), settings.data(), settings.size(), 0), 9);
  // Again and again: what was given up leaves nothing behind.
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Connect().status().code(), absl::StatusCode::kDeadlineExceeded);
  }
}

TEST_F(MuxTest, ManyStreamsAtOnce) {
  Start();
  std::vector<std::pair<Socket, Socket>> streams;
  for (int i = 0; i < 100; ++i) streams.push_back(Open());
  for (int i = 0; i < 100; ++i) {
    asio::co_spawn(io_, WriteAndShutdown(streams[i].first, Pattern(100000, i)), asio::detached);
  }
  for (int i = 99; i >= 0; --i) {
    EXPECT_TRUE(RunFor(io_, ReadToEnd(streams[i].second)) == Pattern(100000, i)) << i;
  }
}

TEST_F(MuxTest, GarbageFromTheGuest) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    auto [host_end, guest_end] = SocketPair();
    auto host = Host::Create(std::move(host_end));
    const std::string garbage = Pattern(100000, seed);
    ASSERT_GT(::send(guest_end.get(), garbage.data(), garbage.size(), MSG_DONTWAIT), 0);
    EXPECT_FALSE(RunFor(io_, host->Run()).value_or(absl::OkStatus()).ok());
  }
}

TEST_F(MuxTest, GarbageFromTheHost) {
  auto [host_end, guest_end] = SocketPair();
  auto guest =
      Guest::Create(std::move(guest_end), [](uint32_t, UniqueFd) { return absl::OkStatus(); });
  const std::string garbage = Pattern(100000, 4);
  ASSERT_GT(::send(host_end.get(), garbage.data(), garbage.size(), MSG_DONTWAIT), 0);
  EXPECT_FALSE(RunFor(io_, guest->Run()).value_or(absl::OkStatus()).ok());
}

// nghttp2 quotes a bad header in its error, which ends up in a log.
TEST_F(MuxTest, ErrorsAreOneLineWhateverThePeerSent) {
  auto [host_end, guest_end] = SocketPair();
  auto guest =
      Guest::Create(std::move(guest_end), [](uint32_t, UniqueFd) { return absl::OkStatus(); });
  const std::string settings("\0\0\0\4\0\0\0\0\0", 9);
  const std::string bad_header("\0\0\x0b\1\4\0\0\0\1\0\3a\nb\5c\033d\re", 20);
  const std::string short_ping("\0\0\1\6\0\0\0\0\0x", 10);
  const std::string bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + bad_header + short_ping;
  ASSERT_EQ(::send(host_end.get(), bytes.data(), bytes.size(), 0),
            static_cast<ssize_t>(bytes.size()));
  const absl::Status status = RunFor(io_, guest->Run()).value_or(absl::OkStatus());
  EXPECT_NE(status.ToString().find("a\\nb"), std::string::npos) << status;
  for (const char c : status.ToString()) EXPECT_GE(c, ' ');
}

TEST_F(MuxTest, ConnectCanBeCancelled) {
  auto [host_end, guest_end] = SocketPair();
  host_ = Host::Create(std::move(host_end));
  asio::co_spawn(io_, host_->Run(), asio::detached);
  auto test = [](std::shared_ptr<Host> host) -> Co<bool> {
    using namespace asio::experimental::awaitable_operators;
    asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::milliseconds(20));
    auto either = host->Connect(kPort) || timer.async_wait(asio::use_awaitable);
    auto which = co_await std::move(either);
    co_return which.index() == 1;
  };
  EXPECT_TRUE(RunFor(io_, test(host_)).value_or(false));
}

TEST_F(MuxTest, Throughput) {
  Start();
  auto [near, far] = Open();
  constexpr size_t kBytes = 64 << 20;
  asio::co_spawn(
      io_,
      [](Socket& socket) -> Co<void> {
        const std::string chunk(256 << 10, 'x');
        for (size_t sent = 0; sent < kBytes; sent += chunk.size()) {
          auto write =
              asio::async_write(socket, asio::buffer(chunk), asio::as_tuple(asio::use_awaitable));
          (void)co_await std::move(write);
        }
        socket.shutdown(Socket::shutdown_send);
      }(far),
      asio::detached);
  auto count = [](Socket& socket) -> Co<size_t> {
    std::vector<char> buffer(256 << 10);
    size_t total = 0;
    while (true) {
      auto read = socket.async_read_some(asio::buffer(buffer), asio::as_tuple(asio::use_awaitable));
      auto [error, n] = co_await std::move(read);
      if (error) co_return total;
      total += n;
    }
  };
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(RunFor(io_, count(near)).value_or(0), kBytes);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  RecordProperty("MiB_per_s", static_cast<int>((kBytes >> 20) / took.count()));
  std::printf("%.0f MiB/s, both ends in one thread\n", (kBytes >> 20) / took.count());
}

}  // namespace
}  // namespace magnetar::mux
