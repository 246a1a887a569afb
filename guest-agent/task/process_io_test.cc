// stdin, stdout and stderr of a process, and what they mean for its end.
#include "guest-agent/task/process_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <optional>

#include "guest-agent/testing/task_fixture.h"
#include "magnetar/descriptor_message.h"

namespace magnetar::guest {
namespace {

using testing::OpenStdio;
using testing::ReadOutput;

// The whole way: the stream is opened first, over a connection of its own.
TEST_F(TaskTest, StdioOverConnections) {
  runtime_.commands["c"] = "read x; echo got $x; exit 4";
  auto connect = [this] {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    connections_.Serve(UniqueFd(pair[1]));
    return ttrpc::Client::Create(loop_.executor(), UniqueFd(pair[0]));
  };
  const auto out_client = connect();
  const auto in_client = connect();
  const auto out = loop_.Run(OpenStdio(out_client, "c-stdout"));
  const auto in = loop_.Run(OpenStdio(in_client, "c-stdin"));
  ASSERT_TRUE(out.ok() && in.ok());
  ASSERT_EQ(Create("c", /*output=*/true), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_TRUE(loop_.Run((*in)->Receive()).ok());
  ASSERT_TRUE(loop_.Run((*in)->Send(streaming::DataFrame("word\n"))).ok());
  const auto frames = loop_.Run(ReadOutput(*out, 65536));
  EXPECT_EQ(frames.data, "got word\n");
  EXPECT_TRUE(frames.ended);
  EXPECT_EQ(Wait()->exit_status(), 4U);
  // Both halves of a stream ended: the guest closes its connection.
  loop_.Run(out_client->Closed());
  EXPECT_TRUE(Delete().ok());
  EXPECT_EQ(streams_.size(), 0U);
}

// containerd drops what it has not read when it hears of the end.
TEST_F(TaskTest, AnEndIsToldOnceItsOutputIsRead) {
  runtime_.commands["c"] = "echo last words; exit 4";
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  connections_.Serve(UniqueFd(pair[1]));
  const auto client = ttrpc::Client::Create(loop_.executor(), UniqueFd(pair[0]));
  const auto out = loop_.Run(OpenStdio(client, "c-stdout"));
  ASSERT_TRUE(out.ok());
  ASSERT_EQ(Create("c", /*output=*/true), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  v3::WaitRequest request;
  request.set_id("c");
  std::optional<uint32_t> told;
  asio::co_spawn(loop_.context, tasks_.Wait(request),
                 [&](const std::exception_ptr&, absl::StatusOr<v3::WaitResponse> response) {
                   told = response->exit_status();
                 });
  loop_.Settle(std::chrono::milliseconds(300));
  EXPECT_FALSE(told.has_value());
  EXPECT_EQ(loop_.Run(ReadOutput(*out, 65536)).data, "last words\n");
  loop_.Until([&] { return told.has_value(); });
  EXPECT_EQ(*told, 4U);
}

TEST(ProcessIo, ASizeThatComesBeforeTheTerminalIsNotLost) {
  Loop loop;
  StreamRegistry streams(loop.executor());
  const testing::TempDir dir;
  ProcessIo::Uris uris;
  uris.terminal = true;
  auto io = ProcessIo::Open(loop.executor(), streams, uris);
  ASSERT_TRUE(io.ok());
  EXPECT_EQ((*io)->Resize(80, 24), absl::OkStatus());
  EXPECT_EQ((*io)->Resize(123, 45), absl::OkStatus());
  ASSERT_TRUE((*io)->Prepare(dir / "console").ok());
  const UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(master.ok());
  const UniqueFd runtime(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (dir / "console").c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(::connect(runtime.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
            0);
  ASSERT_GT(SendWithDescriptor(runtime.get(), "/dev/ptmx", master.get()), 0);
  ASSERT_EQ((*io)->Connect(), absl::OkStatus());
  winsize size = {};
  ASSERT_EQ(::ioctl(master.get(), TIOCGWINSZ, &size), 0);
  EXPECT_EQ(size.ws_col, 123);
  EXPECT_EQ(size.ws_row, 45);
}

}  // namespace
}  // namespace magnetar::guest
