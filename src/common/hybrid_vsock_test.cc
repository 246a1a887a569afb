#include "magnetar/hybrid_vsock.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "src/common/ttrpc/testing.h"

namespace magnetar {
namespace {

using magnetar::testing::RunFor;
using Acceptor = asio::local::stream_protocol::acceptor;
using Socket = asio::local::stream_protocol::socket;

class HybridVsockTest : public ::testing::Test {
 protected:
  HybridVsockTest() { ::unlink(path_.c_str()); }
  ~HybridVsockTest() override { ::unlink(path_.c_str()); }

  // Answers one connection with `answer` and then keeps it open.
  static Co<void> Serve(HybridVsockTest* test, std::string answer) {
    auto accept = test->acceptor_->async_accept(asio::use_awaitable);
    test->peer_.emplace(co_await std::move(accept));
    std::string request(13, '\0');
    auto read = asio::async_read(*test->peer_, asio::buffer(request), asio::use_awaitable);
    co_await std::move(read);
    test->request_ = request;
    if (answer.empty()) {
      test->peer_->close();
      co_return;
    }
    auto write = asio::async_write(*test->peer_, asio::buffer(answer), asio::use_awaitable);
    co_await std::move(write);
  }

  absl::StatusOr<UniqueFd> Dial(std::optional<std::string> answer,
                                std::chrono::nanoseconds timeout = magnetar::testing::kHang) {
    if (answer.has_value()) {
      ::unlink(path_.c_str());
      acceptor_.reset();
      acceptor_.emplace(io_, asio::local::stream_protocol::endpoint(path_));
      asio::co_spawn(io_, Serve(this, *answer), asio::detached);
    }
    auto result = RunFor(io_, DialHybridVsock(path_, 1024, timeout));
    if (!result.has_value()) return absl::InternalError("the test took too long");
    return std::move(*result);
  }

  const std::string path_ =
      absl::StrCat(::testing::TempDir(), "/hybrid_vsock_test.", ::getpid(), ".sock");
  asio::io_context io_;
  std::optional<Acceptor> acceptor_;
  std::optional<Socket> peer_;
  std::string request_;
};

TEST_F(HybridVsockTest, ConnectsAndLeavesTheStreamUntouched) {
  const auto fd = Dial("OK 1073741824\nfirst bytes of the guest");
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(request_, "CONNECT 1024\n");
  char buffer[64];
  const ssize_t n = ::recv(fd->get(), buffer, sizeof(buffer), 0);
  EXPECT_EQ(std::string(buffer, n > 0 ? n : 0), "first bytes of the guest");
}

TEST_F(HybridVsockTest, NothingThere) {
  EXPECT_EQ(Dial(std::nullopt).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(HybridVsockTest, ClosedWithoutAnswer) {
  EXPECT_EQ(Dial("").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(HybridVsockTest, AnswerOfAnotherKind) {
  EXPECT_EQ(Dial("NO\n").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Dial(std::string(1000, 'x')).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(HybridVsockTest, NoAnswer) {
  EXPECT_EQ(Dial("OK without an end", std::chrono::milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(HybridVsockTest, PathTooLong) {
  const std::string path(200, 'p');
  auto result = RunFor(io_, DialHybridVsock(path, 1024, std::chrono::seconds(1)));
  EXPECT_EQ(result->status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace magnetar
