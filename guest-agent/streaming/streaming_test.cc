#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/testing/loop.h"
#include "magnetar/mux.h"
#include "magnetar/streaming/frames.h"
#include "magnetar/streaming/stream_id.h"
#include "src/common/ttrpc/frame.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::guest {
namespace {

using testing::Frames;
using testing::Loop;
using testing::OpenStdio;
using testing::ReadOutput;
using testing::Wire;
using Stream = std::shared_ptr<ttrpc::Stream>;

struct Pipe {
  Pipe() {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0) std::abort();
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
  UniqueFd Nonblocking(UniqueFd fd) {
    ::fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    return fd;
  }
  UniqueFd read, write;
};

class StreamingTest : public ::testing::Test {
 protected:
  StreamingTest() : registry_(loop_.executor()) {
    auto services = std::make_shared<ttrpc::Services>();
    services->AddStream("containerd.services.streaming.v1.Streaming", "Stream",
                        [this](const ttrpc::CallContext&, Stream stream) {
                          return registry_.Serve(std::move(stream));
                        });
    services_ = services;
  }
  std::unique_ptr<Wire> Connect() { return std::make_unique<Wire>(loop_, services_); }
  absl::StatusOr<Stream> Open(Wire& wire, const std::string& id) {
    return loop_.Run(OpenStdio(wire.client, id));
  }

  Loop loop_;
  StreamRegistry registry_;
  std::shared_ptr<const ttrpc::Services> services_;
};

TEST(StreamId, AcceptsWhatContainerdMakes) {
  EXPECT_EQ(*streaming::ParseStreamId("abc-stdin"), streaming::StdioKind::kStdin);
  EXPECT_EQ(*streaming::ParseStreamId(std::string(64, 'f') + "-stdout"),
            streaming::StdioKind::kStdout);
  EXPECT_EQ(*streaming::ParseStreamId("a-stdout-stderr"), streaming::StdioKind::kStderr);
  EXPECT_EQ(*streaming::StreamIdOfUri("ttrpc+hvsock:///r/vm.vsock:1024?streaming_id=a-stdin",
                                      streaming::StdioKind::kStdin),
            "a-stdin");
  EXPECT_EQ(*streaming::StreamIdOfUri("", streaming::StdioKind::kStdout), "");
}

TEST(StreamId, RefusesTheRest) {
  for (const char* id : {"", "-stdin", "a", "a-stdwhat", "../a-stdin", "?a-stdin", "a/b-stdin",
                         "a -stdin", "a\n-stdout"}) {
    EXPECT_FALSE(streaming::ParseStreamId(id).ok()) << id;
  }
  EXPECT_FALSE(streaming::ParseStreamId(std::string(100000, 'a') + "-stdin").ok());
  for (const char* uri : {"?streaming_id=a-stdout", "/fifo", "file:///log", "x://y", "x://y?z=1",
                          "x://y?streaming_id=", "x://y?streaming_id=a-stdin"}) {
    EXPECT_EQ(streaming::StreamIdOfUri(uri, streaming::StdioKind::kStdout).status().code(),
              absl::StatusCode::kInvalidArgument)
        << uri;
  }
}

TEST_F(StreamingTest, SendsWithinTheWindowAndThenTheEnd) {
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdout");
  ASSERT_TRUE(stream.ok()) << stream.status();
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  Pipe pipe;
  ASSERT_EQ(::write(pipe.write.get(), "0123456789", 10), 10);
  pipe.write.reset();
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  const Frames frames = loop_.Run(ReadOutput(*stream, 4));
  EXPECT_TRUE(frames.ended);
  EXPECT_EQ(frames.data, "0123456789");
  EXPECT_THAT(frames.sizes, ::testing::Each(::testing::Le(8U)));
}

TEST_F(StreamingTest, KeepsABoundedAmountForAReaderThatComesBack) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  Pipe pipe;
  const UniqueFd writer = pipe.Nonblocking(std::move(pipe.write));
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  const std::string chunk(4096, 'x');
  size_t taken = 0;
  for (int idle = 0; idle < 3;) {
    const ssize_t n = ::write(writer.get(), chunk.data(), chunk.size());
    if (n > 0) {
      taken += static_cast<size_t>(n);
      idle = 0;
    } else {
      ++idle;
    }
    loop_.Settle(std::chrono::milliseconds(5));
  }
  // The buffer, and the pipe's own 64 KiB.
  EXPECT_LE(taken, streaming::OutputStream::kBufferBytes + (64 << 10));
  auto first = Connect();
  const auto old = Open(*first, "c-stdout");
  ASSERT_TRUE(old.ok());
  const Frames some = loop_.Run(ReadOutput(*old, 1000, 1000));
  EXPECT_EQ(some.data.size(), 1000U);
  first->client->Close();
  loop_.Settle();
  auto second = Connect();
  const auto again = Open(*second, "c-stdout");
  ASSERT_TRUE(again.ok());
  const Frames rest = loop_.Run(ReadOutput(*again, 65536, taken - 1000));
  EXPECT_EQ(rest.data.size(), taken - 1000);
}

TEST_F(StreamingTest, ANewReaderReplacesTheOld) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  auto first = Connect();
  auto second = Connect();
  const auto old = Open(*first, "c-stdout");
  ASSERT_TRUE(old.ok());
  const auto now = Open(*second, "c-stdout");
  ASSERT_TRUE(now.ok());
  auto receive = (*old)->Receive();
  const auto told = loop_.Run(std::move(receive));
  EXPECT_EQ(told.status().code(), absl::StatusCode::kCancelled);
  Pipe pipe;
  ASSERT_EQ(::write(pipe.write.get(), "new", 3), 3);
  pipe.write.reset();
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  EXPECT_EQ(loop_.Run(ReadOutput(*now, 65536)).data, "new");
}

// As at a restart of containerd: of what the old one did not take, nothing is missing.
TEST_F(StreamingTest, ANewReaderGetsWhatAStalledOneDidNotTake) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  std::string text;
  while (text.size() < 300000) absl::StrAppend(&text, text.size(), "\n");
  Pipe pipe;
  ASSERT_GE(::fcntl(pipe.write.get(), F_SETPIPE_SZ, 512 << 10), 0);
  ASSERT_EQ(::write(pipe.write.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  pipe.write.reset();

  // It grants much, and reads nothing.
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd stalled(pair[0]);
  const int small = 1;
  ASSERT_EQ(::setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
  asio::co_spawn(loop_.context, ttrpc::ServeConnection(UniqueFd(pair[1]), services_),
                 asio::detached);
  const auto send = [&stalled](ttrpc::FrameType type, const std::string& body) {
    const auto header =
        ttrpc::EncodeHeader({static_cast<uint32_t>(body.size()), 1, type, uint8_t{0}});
    const std::string frame = std::string(header.data(), header.size()) + body;
    ASSERT_EQ(::write(stalled.get(), frame.data(), frame.size()),
              static_cast<ssize_t>(frame.size()));
  };
  ttrpc::Request request;
  request.set_service("containerd.services.streaming.v1.Streaming");
  request.set_method("Stream");
  send(ttrpc::FrameType::kRequest, request.SerializeAsString());
  send(ttrpc::FrameType::kData, streaming::StreamInitFrame("c-stdout"));
  send(ttrpc::FrameType::kData, streaming::WindowUpdateFrame(1 << 20));
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  // Only a frame that the socket cannot take keeps it from reading on.
  loop_.Until([&] { return (*output)->attached(); });
  loop_.Settle();

  auto wire = Connect();
  const auto now = Open(*wire, "c-stdout");
  ASSERT_TRUE(now.ok());
  const Frames rest = loop_.Run(ReadOutput(*now, 65536));
  EXPECT_TRUE(rest.ended);
  EXPECT_EQ(rest.data, text);
}

TEST_F(StreamingTest, DropsALateWindowUpdate) {
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdout");
  ASSERT_TRUE(stream.ok());
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->EndSource();
  EXPECT_TRUE(loop_.Run(ReadOutput(*stream, 65536, std::string::npos, /*closes=*/false)).ended);
  EXPECT_FALSE((*output)->delivered());
  EXPECT_TRUE(loop_.Run((*stream)->Send(streaming::WindowUpdateFrame(65536))).ok());
  EXPECT_TRUE(loop_.Run((*stream)->CloseSend()).ok());
  loop_.Until([&] { return !(*output)->attached(); });
  EXPECT_TRUE((*output)->delivered());
}

TEST_F(StreamingTest, WritesStdinAndClosesItInOrder) {
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdin");
  ASSERT_TRUE(stream.ok());
  auto receive = (*stream)->Receive();
  const auto grant = loop_.Run(std::move(receive));
  ASSERT_TRUE(grant.ok());
  EXPECT_EQ(*streaming::ParseWindowUpdate(**grant), 65536);
  // Everything, the end included, is sent before there is a process.
  ASSERT_TRUE(loop_.Run((*stream)->Send(streaming::DataFrame("hello "))).ok());
  ASSERT_TRUE(loop_.Run((*stream)->Send(streaming::DataFrame("world"))).ok());
  ASSERT_TRUE(loop_.Run((*stream)->CloseSend()).ok());
  loop_.Settle();
  Pipe pipe;
  const auto input = registry_.ClaimInput("c-stdin");
  ASSERT_TRUE(input.ok());
  (*input)->SetSink(pipe.Nonblocking(std::move(pipe.write)), /*terminal=*/false);
  loop_.Until([&] {
    pollfd ended = {pipe.read.get(), POLLIN, 0};
    return ::poll(&ended, 1, 0) == 1 && (ended.revents & POLLHUP) != 0;
  });
  char buffer[64];
  EXPECT_EQ(::read(pipe.read.get(), buffer, sizeof(buffer)), 11);
  EXPECT_EQ(std::string(buffer, 11), "hello world");
  EXPECT_EQ(::read(pipe.read.get(), buffer, sizeof(buffer)), 0);
}

TEST_F(StreamingTest, KeepsAFewInputsThatCameTooEarly) {
  for (int i = 0; i < 12; ++i) {
    auto wire = Connect();
    const auto stream = Open(*wire, absl::StrCat("e", i, "-stdin"));
    ASSERT_TRUE(stream.ok());
    ASSERT_TRUE(loop_.Run((*stream)->Send(streaming::DataFrame("x"))).ok());
    ASSERT_TRUE(loop_.Run((*stream)->CloseSend()).ok());
    wire->client->Close();
    loop_.Settle(std::chrono::milliseconds(5));
  }
  loop_.Until([this] { return registry_.size() == StreamRegistry::kMaxLeftBehind; });
  EXPECT_TRUE((*registry_.ClaimInput("e11-stdin"))->ended());
  EXPECT_FALSE((*registry_.ClaimInput("e0-stdin"))->ended());
}

TEST_F(StreamingTest, RefusesMoreStdinThanWasGranted) {
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdin");
  ASSERT_TRUE(stream.ok());
  for (int i = 0; i < 3; ++i) {
    const absl::Status sent =
        loop_.Run((*stream)->Send(streaming::DataFrame(std::string(32768, 'x'))));
    static_cast<void>(sent);
  }
  absl::StatusOr<std::optional<std::string>> message;
  do {
    message = loop_.Run((*stream)->Receive());
  } while (message.ok() && message->has_value());
  EXPECT_EQ(message.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(StreamingTest, TakesAndDropsStdinOfAnEndedProcess) {
  const auto input = registry_.ClaimInput("c-stdin");
  ASSERT_TRUE(input.ok());
  (*input)->CloseSink();
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdin");
  ASSERT_TRUE(stream.ok());
  int64_t window = 0;
  for (int i = 0; i < 20; ++i) {
    while (window < 32768) {
      const auto grant = loop_.Run((*stream)->Receive());
      ASSERT_TRUE(grant.ok() && grant->has_value());
      window += *streaming::ParseWindowUpdate(**grant);
    }
    ASSERT_TRUE(loop_.Run((*stream)->Send(streaming::DataFrame(std::string(32768, 'x')))).ok());
    window -= 32768;
  }
}

TEST_F(StreamingTest, BoundsAndForgetsStreamsThatNobodyNames) {
  std::vector<std::unique_ptr<Wire>> wires;
  for (size_t i = 0; i < StreamRegistry::kMaxUnclaimed; ++i) {
    wires.push_back(Connect());
    ASSERT_TRUE(Open(*wires.back(), absl::StrCat("u", i, "-stdout")).ok());
  }
  auto more = Connect();
  EXPECT_EQ(Open(*more, "more-stdout").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(registry_.size(), StreamRegistry::kMaxUnclaimed);
  for (auto& wire : wires) wire->client->Close();
  loop_.Until([this] { return registry_.size() == 0; });
}

TEST_F(StreamingTest, RefusesStrangeNamesAndFrames) {
  auto wire = Connect();
  EXPECT_EQ(Open(*wire, "?streaming_id=x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Open(*wire, "../x-stdout").status().code(), absl::StatusCode::kInvalidArgument);
  auto open = wire->client->OpenStream("containerd.services.streaming.v1.Streaming", "Stream");
  const auto stream = loop_.Run(std::move(open));
  ASSERT_TRUE(stream.ok());
  ASSERT_TRUE(loop_.Run((*stream)->Send("\xff\xff garbage")).ok());
  EXPECT_EQ(loop_.Run((*stream)->Receive()).status().code(), absl::StatusCode::kInvalidArgument);
  const auto named = Open(*wire, "x-stdout");
  ASSERT_TRUE(named.ok());
  ASSERT_TRUE(loop_.Run((*named)->Send(streaming::WindowUpdateFrame(-5))).ok());
  EXPECT_EQ(loop_.Run((*named)->Receive()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(registry_.size(), 0U);
}

TEST_F(StreamingTest, ClaimsOnce) {
  EXPECT_TRUE(registry_.ClaimOutput("c-stdout").ok());
  EXPECT_EQ(registry_.ClaimOutput("c-stdout").status().code(), absl::StatusCode::kAlreadyExists);
  registry_.Forget("c-stdout");
  EXPECT_TRUE(registry_.ClaimOutput("c-stdout").ok());
}

TEST_F(StreamingTest, CoalescesManySmallWrites) {
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdout");
  ASSERT_TRUE(stream.ok());
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  Pipe pipe;
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  std::string expected;
  std::thread writer([&] {
    for (int i = 0; i < 20000; ++i) {
      const std::string line = absl::StrCat("line ", i, "\n");
      expected += line;
      if (::write(pipe.write.get(), line.data(), line.size()) < 0) std::abort();
    }
    pipe.write.reset();
  });
  const Frames frames = loop_.Run(ReadOutput(*stream, 65536));
  writer.join();
  EXPECT_TRUE(frames.data == expected);
  EXPECT_LT(frames.sizes.size(), 2000U);
  EXPECT_THAT(frames.sizes, ::testing::Each(::testing::Le(size_t{32768})));
}

TEST_F(StreamingTest, CarriesMuchQuickly) {
  auto wire = Connect();
  const auto stream = Open(*wire, "c-stdout");
  ASSERT_TRUE(stream.ok());
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  Pipe pipe;
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  constexpr size_t kBytes = 32 << 20;
  std::thread writer([&] {
    const std::string block(65536, 'y');
    for (size_t sent = 0; sent < kBytes; sent += block.size()) {
      if (::write(pipe.write.get(), block.data(), block.size()) < 0) std::abort();
    }
    pipe.write.reset();
  });
  const auto began = std::chrono::steady_clock::now();
  const Frames frames = loop_.Run(ReadOutput(*stream, 65536));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  writer.join();
  EXPECT_EQ(frames.data.size(), kBytes);
  std::cerr << static_cast<double>(kBytes) / took.count() / (1 << 20) << " MiB/s" << std::endl;
}

// As in a guest: over the multiplexed channel, the two ends on threads of their own.
TEST_F(StreamingTest, CarriesMuchOverTheMux) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  asio::io_context transport{1};
  auto guest = mux::Guest::Create(UniqueFd(pair[1]), [this](uint32_t, UniqueFd stream) {
    asio::post(loop_.context, [this, fd = std::make_shared<UniqueFd>(std::move(stream))] {
      asio::co_spawn(loop_.context, ttrpc::ServeConnection(std::move(*fd), services_),
                     asio::detached);
    });
    return absl::OkStatus();
  });
  asio::co_spawn(transport, guest->Run(), asio::detached);
  std::thread transport_thread([&] { transport.run(); });

  Loop outside;
  auto host = mux::Host::Create(UniqueFd(pair[0]));
  asio::co_spawn(outside.context, host->Run(), asio::detached);
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  Pipe pipe;
  (*output)->SetSource(pipe.Nonblocking(std::move(pipe.read)));
  constexpr size_t kBytes = 16 << 20;
  std::thread writer([&] {
    const std::string block(4096, 'y');
    for (size_t sent = 0; sent < kBytes; sent += block.size()) {
      if (::write(pipe.write.get(), block.data(), block.size()) < 0) std::abort();
    }
    pipe.write.reset();
  });
  const auto work = asio::make_work_guard(loop_.context);
  std::thread main_loop([this] { loop_.context.run(); });
  ASSERT_TRUE(outside.Run(host->Ready()).ok());
  auto socket = outside.Run(host->Connect(1024));
  ASSERT_TRUE(socket.ok());
  auto client = ttrpc::Client::Create(outside.executor(), *std::move(socket));
  const auto stream = outside.Run(OpenStdio(client, "c-stdout"));
  ASSERT_TRUE(stream.ok());
  const auto began = std::chrono::steady_clock::now();
  const Frames frames = outside.Run(ReadOutput(*stream, 65536));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  EXPECT_EQ(frames.data.size(), kBytes);
  std::cerr << static_cast<double>(kBytes) / took.count() / (1 << 20) << " MiB/s in "
            << frames.sizes.size() << " frames" << std::endl;
  host->Close();
  outside.Settle();
  writer.join();
  loop_.context.stop();
  main_loop.join();
  transport.stop();
  transport_thread.join();
}

}  // namespace
}  // namespace magnetar::guest
