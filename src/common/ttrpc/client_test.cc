// The client against bytes.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <boost/asio/detached.hpp>
#include <string>
#include <vector>

#include "magnetar/ttrpc/ttrpc.h"
#include "src/common/ttrpc/testing.h"
#include "src/common/ttrpc/wire.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::ttrpc {
namespace {

using magnetar::testing::RunFor;
using magnetar::testing::SocketPair;
using magnetar::testing::WireFrame;
using std::chrono::milliseconds;
using Messages = std::vector<std::string>;

class ClientTest : public ::testing::Test {
 public:  // coroutines of the tests use it too
  void Start(Limits limits = {}) {
    auto [near, far] = SocketPair();
    peer_ = std::move(far);
    client_ = Client::Create(io_.get_executor(), std::move(near), limits);
  }

  void Answer(const std::string& bytes) {
    ASSERT_EQ(::send(peer_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }

  std::string Sent() {
    char buffer[65536];
    const ssize_t n = ::recv(peer_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    return std::string(buffer, n > 0 ? static_cast<size_t>(n) : 0);
  }

  absl::StatusOr<std::string> Call(std::string payload, std::chrono::nanoseconds timeout = {}) {
    auto result = RunFor(io_, client_->CallRaw("t", "M", std::move(payload), timeout, {}));
    if (!result.has_value()) return absl::InternalError("the test took too long");
    return *std::move(result);
  }

  // Opens a stream and receives to its end or an error.
  static Co<Messages> ReadStream(std::shared_ptr<Client> client) {
    auto open = client->OpenStream("t", "S");
    auto stream = co_await std::move(open);
    Messages out;
    if (!stream.ok()) co_return Messages{stream.status().ToString()};
    while (true) {
      auto receive = (*stream)->Receive();
      auto message = co_await std::move(receive);
      if (!message.ok()) {
        out.push_back(absl::StatusCodeToString(message.status().code()));
        break;
      }
      if (!message->has_value()) {
        out.emplace_back("end");
        break;
      }
      out.push_back(std::move(**message));
    }
    co_return out;
  }

  asio::io_context io_;
  UniqueFd peer_;
  std::shared_ptr<Client> client_;
};

TEST_F(ClientTest, RequestBytes) {
  Start();
  Answer(WireFrame(1, FrameType::kResponse, 0, "\x12\x02ok"));
  EXPECT_EQ(*Call("p"), "ok");
  EXPECT_EQ(Sent(), std::string("\0\0\0\x09\0\0\0\x01\x01\0\x0a\x01t\x12\x01M\x1a\x01p", 19));
  Answer(WireFrame(3, FrameType::kResponse, 0, ""));
  EXPECT_EQ(*Call("", std::chrono::nanoseconds(1'000'000'000)), "");
  EXPECT_EQ(Sent(), std::string("\0\0\0\x0c\0\0\0\x03\x01\0\x0a\x01t\x12\x01M\x20\x80\x94\xeb\xdc"
                                "\x03",
                                22));
}

TEST_F(ClientTest, StreamBytes) {
  Start();
  auto test = [](std::shared_ptr<Client> client) -> Co<bool> {
    auto open = client->OpenStream("t", "S");
    auto stream = co_await std::move(open);
    auto send = (*stream)->Send("m");
    (void)co_await std::move(send);
    auto close = (*stream)->CloseSend();
    (void)co_await std::move(close);
    auto late = (*stream)->Send("late");
    const absl::Status status = co_await std::move(late);
    co_return absl::IsFailedPrecondition(status);
  };
  EXPECT_TRUE(*RunFor(io_, test(client_)));
  EXPECT_EQ(Sent(), std::string("\0\0\0\x06\0\0\0\x01\x01\x02\x0a\x01t\x12\x01S"
                                "\0\0\0\x01\0\0\0\x01\x03\0m"
                                "\0\0\0\0\0\0\0\x01\x03\x05",
                                37));
}

// Opens a stream; the peer sends `bytes` and closes; reads only after that.
Co<Messages> ReadAfterClose(std::shared_ptr<Client> client, ClientTest* test, std::string bytes) {
  auto open = client->OpenStream("t", "S");
  auto stream = co_await std::move(open);
  test->Answer(bytes);
  test->peer_.reset();
  auto gone = client->Closed();
  co_await std::move(gone);
  Messages out;
  for (int i = 0; i < 3; ++i) {
    auto receive = (*stream)->Receive();
    auto message = co_await std::move(receive);
    out.push_back(message.ok() ? message->value_or("end")
                               : absl::StatusCodeToString(message.status().code()));
  }
  co_return out;
}

TEST_F(ClientTest, WhatCameBeforeTheCloseIsReadable) {
  const std::string data =
      WireFrame(1, FrameType::kData, 0, "a") + WireFrame(1, FrameType::kData, 0, "");
  Start();
  EXPECT_EQ(*RunFor(io_, ReadAfterClose(client_, this, data)), (Messages{"a", "", "UNAVAILABLE"}));
  Start();
  const std::string end = WireFrame(1, FrameType::kData, kRemoteClosed | kNoData, "");
  EXPECT_EQ(*RunFor(io_, ReadAfterClose(client_, this, data + end)), (Messages{"a", "", "end"}));
}

TEST_F(ClientTest, AnErrorResponseEndsAStreamAfterItsData) {
  Start();
  Answer(WireFrame(1, FrameType::kData, 0, "a") +
         WireFrame(1, FrameType::kResponse, 0, EncodeResponse(absl::NotFoundError(""), 100)) +
         WireFrame(1, FrameType::kData, 0, "late"));
  EXPECT_EQ(*RunFor(io_, ReadStream(client_)), (Messages{"a", "NOT_FOUND"}));
}

TEST_F(ClientTest, AResponseWithPayloadIsTheLastMessage) {
  Start();
  Answer(WireFrame(1, FrameType::kResponse, 0, EncodeResponse(std::string("last"), 100)));
  EXPECT_EQ(*RunFor(io_, ReadStream(client_)), (Messages{"last", "end"}));
}

TEST_F(ClientTest, AnswersToNobodyAreDropped) {
  Start();
  EXPECT_EQ(Call("", milliseconds(5)).status().code(), absl::StatusCode::kDeadlineExceeded);
  Answer(WireFrame(1, FrameType::kResponse, 0, "") + WireFrame(99, FrameType::kData, 0, "x") +
         WireFrame(3, FrameType::kResponse, 0, "\x12\x02ok"));
  EXPECT_EQ(*Call(""), "ok");
}

TEST_F(ClientTest, BadAnswers) {
  Start();
  Answer(WireFrame(1, FrameType::kResponse, 0, "\xff"));
  EXPECT_EQ(Call("").status().code(), absl::StatusCode::kInternal);
  Start({.max_message_bytes = 100});
  Answer(WireFrame(1, FrameType::kResponse, 0, std::string(101, 'x')));
  EXPECT_EQ(Call("").status().code(), absl::StatusCode::kResourceExhausted);
  Answer(WireFrame(3, FrameType::kData, 0, std::string(101, 'x')));
  EXPECT_EQ(*RunFor(io_, ReadStream(client_)), Messages{"RESOURCE_EXHAUSTED"});
  // Less may come in than goes out.
  Start({.max_received_bytes = 100});
  Answer(WireFrame(1, FrameType::kResponse, 0, std::string(101, 'x')));
  EXPECT_EQ(Call(std::string(200, 'y')).status().code(), absl::StatusCode::kResourceExhausted);
  Start();
  Answer("garbage garbage");
  EXPECT_EQ(Call("").status().code(), absl::StatusCode::kUnavailable);
  Start();
  Answer(WireFrame(1, FrameType::kRequest, 0, ""));
  EXPECT_EQ(Call("").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, AFloodedStreamEndsAlone) {
  Start({.max_stream_backlog_bytes = 10000});
  auto test = [](std::shared_ptr<Client> client, ClientTest* self) -> Co<Messages> {
    auto open = client->OpenStream("t", "S");
    auto stream = co_await std::move(open);
    std::string flood;
    for (int i = 0; i < 20; ++i) flood += WireFrame(1, FrameType::kData, 0, std::string(1000, 'x'));
    self->Answer(flood + WireFrame(3, FrameType::kResponse, 0, "\x12\x02ok"));
    auto call = client->CallRaw("t", "M", "", {}, {});
    const auto answer = co_await std::move(call);
    auto receive = (*stream)->Receive();
    const auto message = co_await std::move(receive);
    co_return Messages{answer.value_or("none"), absl::StatusCodeToString(message.status().code())};
  };
  EXPECT_EQ(*RunFor(io_, test(client_, this)), (Messages{"ok", "RESOURCE_EXHAUSTED"}));
}

// Requests that a stalled peer never took do not pile up.
TEST_F(ClientTest, AStalledPeerCostsNoMemory) {
  Start();
  const std::string big(1 << 20, 'x');
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(Call(big, milliseconds(1)).status().code(), absl::StatusCode::kDeadlineExceeded);
  }
  // All that may be left is what the socket took and the one frame that is half
  // written: the peer sees it, and nothing of the others.
  size_t total = 0;
  for (int idle = 0; idle < 20;) {
    const std::string got = Sent();
    total += got.size();
    idle = got.empty() ? idle + 1 : 0;
    io_.restart();
    io_.run_for(milliseconds(1));
  }
  EXPECT_LT(total, 4u << 20);
}

TEST_F(ClientTest, ASocketThatIsNone) {
  client_ = Client::Create(io_.get_executor(), UniqueFd());
  EXPECT_EQ(Call("").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace magnetar::ttrpc
