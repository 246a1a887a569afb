// Descriptors that the user of a stream passes to be used in its place.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <csignal>
#include <thread>

#include "magnetar/descriptor_message.h"
#include "src/common/mux/testing.h"

namespace magnetar::mux {
namespace {

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
    asio::io_context own;
    asio::posix::stream_descriptor out(own, pipe.release());
    boost::system::error_code error;
    asio::write(out, asio::buffer(data), error);
    EXPECT_FALSE(error) << error.message();
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

}  // namespace
}  // namespace magnetar::mux
