#include "src/supervisor/connect_line.h"

#include <gtest/gtest.h>

#include <random>

#include "src/supervisor/async_test_util.h"

namespace magnetar::supervisor {
namespace {

TEST(ConnectLine, Parses) {
  EXPECT_EQ(ParseConnectLine("CONNECT 1024").value(), 1024u);
  EXPECT_EQ(ParseConnectLine("CONNECT 1024\r").value(), 1024u);
  EXPECT_EQ(ParseConnectLine("CONNECT 4294967295").value(), 4294967295u);
  EXPECT_EQ(ParseConnectLine("CONNECT 0").value(), 0u);
}

TEST(ConnectLine, RefusesWhatIsNone) {
  for (const char* bad :
       {"", "CONNECT", "CONNECT ", "CONNECT  1", "CONNECT +1", "CONNECT -1", "CONNECT 1 ",
        "connect 1", "CONNECT 4294967296", "CONNECT 99999999999", "CONNECT 0x10", "GET / HTTP/1.1",
        "CONNECT 1\r\r", "CONNECT 00000000001"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseConnectLine(bad).status())) << bad;
  }
}

class ReadConnectLineTest : public testing::Test {
 protected:
  ReadConnectLineTest() {
    auto [near, far] = SocketPair();
    socket_.assign(near.release());
    peer_ = std::move(far);
  }
  absl::StatusOr<uint32_t> Read() { return Await(context_, ReadConnectLine(socket_)); }
  void Send(const std::string& data) {
    ASSERT_EQ(::send(peer_.get(), data.data(), data.size(), 0), static_cast<ssize_t>(data.size()));
  }

  asio::io_context context_;
  AsyncFd socket_{context_};
  UniqueFd peer_;
};

TEST_F(ReadConnectLineTest, LeavesWhatFollows) {
  Send("CONNECT 7\nhello\n");
  EXPECT_EQ(Read().value(), 7u);
  EXPECT_EQ(ReadAvailable(socket_.native_handle()), "hello\n");
}

TEST_F(ReadConnectLineTest, ByteByByte) {
  std::optional<absl::StatusOr<uint32_t>> result;
  asio::co_spawn(context_, ReadConnectLine(socket_),
                 [&](std::exception_ptr, absl::StatusOr<uint32_t> r) { result = std::move(r); });
  for (const char c : std::string("CONNECT 42\n")) {
    EXPECT_FALSE(result.has_value());
    Send(std::string(1, c));
    size_t ran;
    do {
      context_.restart();
      ran = context_.poll();
    } while (ran > 0);
  }
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->value(), 42u);
}

TEST_F(ReadConnectLineTest, BoundsTheLine) {
  Send(std::string(1000, 'C'));
  EXPECT_TRUE(absl::IsInvalidArgument(Read().status()));
}

TEST_F(ReadConnectLineTest, PeerThatCloses) {
  Send("CONN");
  peer_.reset();
  EXPECT_TRUE(absl::IsUnavailable(Read().status()));
}

// Whatever comes in whatever pieces: an answer that agrees with the parser, and
// not a byte taken from beyond the line.
TEST_F(ReadConnectLineTest, AnyBytes) {
  std::mt19937 random(11);
  const std::string alphabet = "CONNECT 0123456789\r\n\n \x80";
  for (int round = 0; round < 3000; ++round) {
    auto [near, far] = SocketPair();
    AsyncFd socket(context_, near.release());
    std::string data = random() % 2 ? "CONNECT " : "";
    const size_t length = random() % 48;
    for (size_t i = 0; i < length; ++i) data.push_back(alphabet[random() % alphabet.size()]);
    ASSERT_EQ(::send(far.get(), data.data(), data.size(), 0), static_cast<ssize_t>(data.size()));
    ::shutdown(far.get(), SHUT_WR);
    auto port = Await(context_, ReadConnectLine(socket));
    const size_t newline = data.find('\n');
    if (newline == std::string::npos || newline >= kMaxConnectLineBytes) {
      ASSERT_FALSE(port.ok()) << data;
      continue;
    }
    const auto expected = ParseConnectLine(data.substr(0, newline));
    ASSERT_EQ(port.ok(), expected.ok()) << data;
    if (port.ok()) {
      ASSERT_EQ(*port, *expected);
    }
    ASSERT_EQ(ReadAvailable(socket.native_handle()), data.substr(newline + 1));
  }
}

}  // namespace
}  // namespace magnetar::supervisor
