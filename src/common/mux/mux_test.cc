#include "magnetar/mux.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <csignal>
#include <deque>
#include <thread>
#include <vector>

#include "magnetar/descriptor_message.h"
#include "magnetar/event.h"
#include "magnetar/ports.h"
#include "src/common/ttrpc/testing.h"

namespace magnetar::mux {
namespace {

using magnetar::testing::RunFor;
using magnetar::testing::SocketPair;
using Socket = asio::local::stream_protocol::socket;
constexpr uint32_t kPort = 1024;

Socket ToSocket(asio::io_context& io, UniqueFd fd) {
  return Socket(io, asio::local::stream_protocol(), fd.release());
}

class MuxTest : public ::testing::Test {
 protected:
  void Start(Limits limits = {}) {
    auto [host_end, guest_end] = SocketPair();
    host_ = Host::Create(std::move(host_end), limits);
    limits.gather_bytes = 64 << 10;
    limits.read_bytes = 256 << 10;
    guest_ = Guest::Create(
        std::move(guest_end),
        [this](uint32_t port, UniqueFd stream) {
          if (port != kPort && port != kForwardPort)
            return absl::UnavailableError("nothing listens");
          accepted_.push_back(std::move(stream));
          return absl::OkStatus();
        },
        limits);
    asio::co_spawn(io_, host_->Run(), [this](const std::exception_ptr&, absl::Status status) {
      host_status_ = std::move(status);
    });
    asio::co_spawn(io_, guest_->Run(), [this](const std::exception_ptr&, absl::Status status) {
      guest_status_ = std::move(status);
    });
  }

  absl::StatusOr<UniqueFd> Connect(uint32_t port = kPort) {
    auto result = RunFor(io_, host_->Connect(port));
    if (!result.has_value()) return absl::InternalError("the test took too long");
    return std::move(*result);
  }

  // Both ends of one stream: the host's and the guest's.
  std::pair<Socket, Socket> Open(uint32_t port = kPort) {
    auto near = Connect(port);
    EXPECT_TRUE(near.ok()) << near.status();
    EXPECT_FALSE(accepted_.empty());
    auto far = std::move(accepted_.back());
    accepted_.pop_back();
    return {ToSocket(io_, *std::move(near)), ToSocket(io_, std::move(far))};
  }

  asio::io_context io_;
  std::shared_ptr<Host> host_;
  std::shared_ptr<Guest> guest_;
  std::vector<UniqueFd> accepted_;
  std::optional<absl::Status> host_status_;
  std::optional<absl::Status> guest_status_;
};

std::string Pattern(size_t size, unsigned seed) {
  std::string out(size, '\0');
  uint32_t x = seed * 2654435761u + 1;
  for (char& c : out) {
    x = x * 1664525 + 1013904223;
    c = static_cast<char>(x >> 24);
  }
  return out;
}

Co<bool> Write(Socket& socket, std::string data) {
  auto write = asio::async_write(socket, asio::buffer(data), asio::as_tuple(asio::use_awaitable));
  auto [error, n] = co_await std::move(write);
  co_return !error;
}

Co<bool> WriteAndShutdown(Socket& socket, std::string data) {
  auto write = Write(socket, std::move(data));
  const bool written = co_await std::move(write);
  boost::system::error_code ignored;
  socket.shutdown(Socket::shutdown_send, ignored);
  co_return written;
}

// So many bytes, or what came before an end.
Co<std::string> Read(Socket& socket, size_t size) {
  std::string out(size, '\0');
  auto read = asio::async_read(socket, asio::buffer(out), asio::as_tuple(asio::use_awaitable));
  auto [error, n] = co_await std::move(read);
  out.resize(n);
  co_return out;
}

Co<std::string> ReadToEnd(Socket& socket) {
  std::string out;
  std::vector<char> buffer(65536);
  while (true) {
    auto read = socket.async_read_some(asio::buffer(buffer), asio::as_tuple(asio::use_awaitable));
    auto [error, n] = co_await std::move(read);
    if (error) break;
    out.append(buffer.data(), n);
  }
  co_return out;
}

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

// Passes the reading end of a pipe, with one byte, which is not sent; gives the writing end.
UniqueFd PassPipe(Socket& user) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
  const UniqueFd read_end(fds[0]);
  EXPECT_EQ(SendWithDescriptor(user.native_handle(), {&kPassSource, 1}, read_end.get()), 1);
  return UniqueFd(fds[1]);
}

TEST_F(MuxTest, APassedDescriptorIsReadInTheUsersPlace) {
  Start();
  auto [near, far] = Open();
  ASSERT_EQ(::send(far.native_handle(), "first ", 6, 0), 6);
  UniqueFd pipe = PassPipe(far);
  const std::string data = Pattern(4 << 20, 7);
  std::thread writer([&] {
    ::fcntl(pipe.get(), F_SETFL, 0);
    for (size_t at = 0; at < data.size();) {
      const ssize_t n = ::write(pipe.get(), data.data() + at, data.size() - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
    pipe.reset();
  });
  EXPECT_TRUE(RunFor(io_, ReadToEnd(near)) == "first " + data);
  writer.join();
  // The host has got it all, and says so by closing.
  near.close();
  EXPECT_EQ(RunFor(io_, ReadToEnd(far)).value_or("late"), "");
}

TEST_F(MuxTest, WhoeverPassedADescriptorCanGiveUpTheStream) {
  Start();
  auto [near, far] = Open();
  UniqueFd pipe = PassPipe(far);
  ASSERT_EQ(::write(pipe.get(), "here", 4), 4);
  ASSERT_EQ(RunFor(io_, Read(near, 4)).value_or("late"), "here");
  far.shutdown(Socket::shutdown_both);
  EXPECT_EQ(RunFor(io_, ReadToEnd(near)).value_or("late"), "");
  // Nobody reads it any more.
  const auto nobody_reads = [&] { return ::write(pipe.get(), "x", 1) < 0 && errno == EPIPE; };
  ::signal(SIGPIPE, SIG_IGN);
  for (int i = 0; i < 100 && !nobody_reads(); ++i) io_.run_one_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(nobody_reads());
}

// Passes one end of a connection, in the user's place; gives the other.
Socket PassConnection(asio::io_context& io, Socket& user) {
  auto [passed, peer] = SocketPair();
  EXPECT_EQ(SendWithDescriptor(user.native_handle(), {&kPassConnection, 1}, passed.get()), 1);
  return ToSocket(io, std::move(peer));
}

TEST_F(MuxTest, APassedConnectionIsUsedBothWays) {
  Start();
  auto [near, far] = Open(kForwardPort);
  ASSERT_EQ(::send(far.native_handle(), "first ", 6, 0), 6);
  Socket peer = PassConnection(io_, far);
  const std::string out = Pattern(4 << 20, 8), in = Pattern(3 << 20, 9);
  auto both = [](Socket& near, Socket& peer, const std::string& out,
                 const std::string& in) -> Co<std::pair<std::string, std::string>> {
    using asio::experimental::awaitable_operators::operator&&;
    // What the host sends before the connection has been passed would be its user's.
    auto read = Read(near, 6);
    const std::string first = co_await std::move(read);
    auto all = WriteAndShutdown(near, in) && WriteAndShutdown(peer, out) && ReadToEnd(near) &&
               ReadToEnd(peer);
    auto [sent_in, sent_out, got_out, got_in] = co_await std::move(all);
    co_return std::pair(first + got_out, got_in);
  };
  const auto got = RunFor(io_, both(near, peer, out, in));
  ASSERT_TRUE(got.has_value());
  EXPECT_TRUE(got->first == "first " + out);
  EXPECT_TRUE(got->second == in);
  // Its user learns that it is over.
  EXPECT_EQ(RunFor(io_, ReadToEnd(far)).value_or("late"), "");
}

TEST_F(MuxTest, AConnectionThatTakesNoMoreIsHeardToItsEnd) {
  Start();
  auto [near, far] = Open();
  Socket peer = PassConnection(io_, far);
  ASSERT_EQ(::send(peer.native_handle(), "hello", 5, 0), 5);
  ASSERT_EQ(RunFor(io_, Read(near, 5)).value_or("late"), "hello");
  peer.shutdown(Socket::shutdown_receive);
  // Also by a client that is done with its upload before it reads: more than windows and sockets
  // hold, and begun with a piece of more than half a window.
  const std::string piece = Pattern(160 << 10, 11);
  ASSERT_EQ(::send(near.native_handle(), piece.data(), piece.size(), 0),
            static_cast<ssize_t>(piece.size()));
  EXPECT_TRUE(RunFor(io_, Write(near, Pattern(4 << 20, 10))).value_or(false));
  ASSERT_EQ(::send(peer.native_handle(), "refused", 7, 0), 7);
  peer.close();
  EXPECT_EQ(RunFor(io_, ReadToEnd(near)).value_or("late"), "refused");
  EXPECT_EQ(RunFor(io_, ReadToEnd(far)).value_or("late"), "");
}

std::string Frame(char type, char flags, char stream, const std::string& payload) {
  return std::string{0, 0, static_cast<char>(payload.size()), type, flags, 0, 0, 0, stream} +
         payload;
}

// What the DATA frames carry of all that is there to read.
std::string ReadData(int socket) {
  std::string bytes(64 << 10, '\0'), data;
  const ssize_t n = ::recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
  bytes.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
  for (size_t at = 0; at + 9 <= bytes.size();) {
    const size_t size =
        static_cast<uint8_t>(bytes[at + 1]) * 256u + static_cast<uint8_t>(bytes[at + 2]);
    if (bytes[at + 3] == 0) data += bytes.substr(at + 9, size);
    at += 9 + size;
  }
  return data;
}

// A message that passes something may be of two bytes, of which the window has room for one: it is
// read by itself or with what was written before.
TEST_F(MuxTest, AMessageThatPassesAConnectionMayBeCut) {
  for (const bool by_itself : {true, false}) {
    SCOPED_TRACE(by_itself);
    auto [host_end, guest_end] = SocketPair();
    UniqueFd stream;
    auto guest = Guest::Create(std::move(guest_end), [&stream](uint32_t, UniqueFd accepted) {
      stream = std::move(accepted);
      return absl::OkStatus();
    });
    asio::co_spawn(io_, guest->Run(), asio::detached);
    const auto settle = [&] {
      io_.restart();
      while (io_.poll() > 0) {
      }
    };
    const auto say = [&](const std::string& bytes) {
      ASSERT_EQ(::send(host_end.get(), bytes.data(), bytes.size(), 0),
                static_cast<ssize_t>(bytes.size()));
      settle();
    };
    const std::string method("\0\7:method\7CONNECT", 17);
    const std::string authority("\0\x0a:authority\x0aguest:1024", 23);
    say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(4, 0, 0, std::string("\0\4\0\0\0\6", 6)) +
        Frame(1, 4, 1, method + authority));
    ASSERT_TRUE(stream.ok());
    ASSERT_EQ(::send(stream.get(), "hello", 5, 0), 5);
    if (by_itself) settle();
    auto [passed, peer] = SocketPair();
    ASSERT_EQ(::send(peer.get(), " there", 6, 0), 6);
    const char message[] = {'!', kPassConnection};
    ASSERT_EQ(SendWithDescriptor(stream.get(), {message, 2}, passed.get()), 2);
    settle();
    EXPECT_EQ(ReadData(host_end.get()), "hello!");
    say(Frame(8, 0, 1, std::string("\0\0\0\x40", 4)));
    EXPECT_EQ(ReadData(host_end.get()), " there");
    say(Frame(0, 0, 1, "back"));
    char back[8];
    ASSERT_EQ(::recv(peer.get(), back, sizeof(back), MSG_DONTWAIT), 4);
    EXPECT_EQ(std::string(back, 4), "back");
  }
}

TEST_F(MuxTest, WhoeverPassedAConnectionCanGiveUpTheStream) {
  Start();
  auto [near, far] = Open();
  Socket peer = PassConnection(io_, far);
  far.close();
  EXPECT_EQ(RunFor(io_, ReadToEnd(near)).value_or("late"), "");
  EXPECT_EQ(RunFor(io_, ReadToEnd(peer)).value_or("late"), "");
}

// What the host can send while nobody in the guest reads.
size_t SendUntilFull(asio::io_context& io, Socket& near) {
  const std::string data(64 << 10, 'x');
  size_t sent = 0;
  for (bool more = true; more;) {
    const ssize_t n = ::send(near.native_handle(), data.data(), data.size(), MSG_DONTWAIT);
    if (n > 0) sent += static_cast<size_t>(n);
    io.restart();
    more = io.poll() > 0 || n > 0;
  }
  return sent;
}

TEST_F(MuxTest, ABulkyForwardedConnectionGetsAWiderWindow) {
  Limits limits;
  limits.max_wide_streams = 1;
  Start(limits);
  auto other_port = Open(kPort), first = Open(kForwardPort), second = Open(kForwardPort);
  const size_t usual = SendUntilFull(io_, other_port.first);
  constexpr size_t kMore = 512 << 10;
  const size_t sent = SendUntilFull(io_, first.first);
  EXPECT_GT(sent, usual + kMore);
  EXPECT_LT(SendUntilFull(io_, second.first), usual + kMore);
  // What has sent its last needs no window any more.
  first.first.shutdown(Socket::shutdown_send);
  EXPECT_EQ(RunFor(io_, ReadToEnd(first.second)).value_or("").size(), sent);
  auto third = Open(kForwardPort);
  EXPECT_GT(SendUntilFull(io_, third.first), usual + kMore);
}

TEST_F(MuxTest, ACloseByTheHostLetsGoOfThePassedDescriptor) {
  Start();
  auto [near, far] = Open();
  UniqueFd pipe = PassPipe(far);
  near.close();
  EXPECT_EQ(RunFor(io_, ReadToEnd(far)).value_or("late"), "");
  ::signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(::write(pipe.get(), "x", 1), -1);
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
