// The server against bytes.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <string>
#include <vector>

#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/common/ttrpc/testing.h"
#include "src/common/ttrpc/wire.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::ttrpc {
namespace {

using magnetar::testing::SocketPair;
using magnetar::testing::WireFrame;
using std::chrono::milliseconds;
using Messages = std::vector<std::string>;

std::string RequestBody(const std::string& method, const std::string& payload = "",
                        int64_t timeout_nano = 0) {
  Request request;
  request.set_service("t");
  request.set_method(method);
  request.set_payload(payload);
  request.set_timeout_nano(timeout_nano);
  return request.SerializeAsString();
}

std::string Call(uint32_t id, const std::string& method, const std::string& payload = "") {
  return WireFrame(id, FrameType::kRequest, 0, RequestBody(method, payload));
}

std::string Open(uint32_t id, const std::string& method) {
  return WireFrame(id, FrameType::kRequest, kRemoteOpen, RequestBody(method));
}

std::string Data(uint32_t id, const std::string& message) {
  return WireFrame(id, FrameType::kData, 0, message);
}

std::string End(uint32_t id) {
  return WireFrame(id, FrameType::kData, kRemoteClosed | kNoData, "");
}

std::string Answer(uint32_t id, const absl::StatusOr<std::string>& result) {
  return WireFrame(id, FrameType::kResponse, 0, EncodeResponse(result, 4 << 20));
}

// The code of the Response that `frame` is; kOk for anything else.
absl::StatusCode CodeOf(const std::string& frame) {
  if (frame.size() < kHeaderBytes || frame[8] != 2) return absl::StatusCode::kOk;
  return DecodeResponse(frame.substr(kHeaderBytes)).status().code();
}

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    services_->AddUnary("t", "Echo",
                        [](CallContext, std::string payload) -> Co<absl::StatusOr<std::string>> {
                          co_return payload;
                        });
    services_->AddUnary("t", "Deadline", Deadline);
    services_->AddUnary("t", "Large",
                        [](CallContext, std::string payload) -> Co<absl::StatusOr<std::string>> {
                          co_return std::string(std::stoul(payload), 'x');
                        });
    services_->AddUnary("t", "Stubborn",
                        [this](CallContext, std::string) { return Stubborn(this); });
    services_->AddUnary("t", "Patient", [this](CallContext, std::string) { return Patient(this); });
    services_->AddStream("t", "Silent",
                         [](CallContext, std::shared_ptr<Stream>) -> Co<absl::Status> {
                           co_return absl::OkStatus();
                         });
    services_->AddStream("t", "Collect", [this](CallContext, std::shared_ptr<Stream> stream) {
      return Collect(this, std::move(stream));
    });
    services_->AddStream("t", "Close", CloseAndReturn);
    services_->AddStream("t", "Idle", [this](CallContext, std::shared_ptr<Stream> stream) {
      return Idle(this, std::move(stream));
    });
  }

  static Co<absl::StatusOr<std::string>> Deadline(CallContext context, std::string) {
    if (!context.deadline.has_value()) co_return "none";
    const auto left = *context.deadline - std::chrono::steady_clock::now();
    co_return left.count()<0 ? "past" : left> std::chrono::hours(1) ? "far" : "near";
  }

  // Runs until it is told to end, whatever happens to its call.
  static Co<absl::StatusOr<std::string>> Stubborn(ServerTest* test) {
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    ++test->running_;
    while (test->stubborn_) {
      auto wait = test->wake_.Wait();
      co_await std::move(wait);
    }
    --test->running_;
    co_return std::string("late");
  }

  // Runs until its call is cancelled.
  static Co<absl::StatusOr<std::string>> Patient(ServerTest* test) {
    struct Count {
      int& running;
      explicit Count(int& r) : running(r) { ++running; }
      ~Count() { --running; }
    } count(test->running_);
    while (true) {
      auto wait = test->wake_.Wait();
      co_await std::move(wait);
    }
  }

  // Reads slowly, to the end.
  static Co<absl::Status> Collect(ServerTest* test, std::shared_ptr<Stream> stream) {
    asio::steady_timer timer(test->io_);
    while (true) {
      timer.expires_after(milliseconds(10));
      auto wait = timer.async_wait(asio::as_tuple(asio::use_awaitable));
      (void)co_await std::move(wait);
      auto receive = stream->Receive();
      auto message = co_await std::move(receive);
      if (!message.ok()) {
        test->collected_.push_back(absl::StatusCodeToString(message.status().code()));
        co_return message.status();
      }
      if (!message->has_value()) break;
      test->collected_.push_back(std::move(**message));
    }
    test->collected_.emplace_back("end");
    auto close = stream->CloseSend();
    co_return co_await std::move(close);
  }

  static Co<absl::Status> CloseAndReturn(CallContext, std::shared_ptr<Stream> stream) {
    auto send = stream->Send("bye");
    const absl::Status sent = co_await std::move(send);
    if (!sent.ok()) co_return sent;
    auto close = stream->CloseSend();
    co_return co_await std::move(close);
  }

  // Reads nothing until told to.
  static Co<absl::Status> Idle(ServerTest* test, std::shared_ptr<Stream> stream) {
    auto wait = test->wake_.Wait();
    co_await std::move(wait);
    auto receive = stream->Receive();
    auto message = co_await std::move(receive);
    test->collected_.push_back(absl::StatusCodeToString(message.status().code()));
    co_return message.status();
  }

  void Start(Limits limits = {}) {
    auto [near, far] = SocketPair();
    peer_ = std::move(near);
    asio::co_spawn(
        io_, ServeConnection(std::move(far), services_, limits),
        [this](const std::exception_ptr&, absl::Status status) { served_ = std::move(status); });
  }

  // Sends everything, letting the server work in between.
  void Send(const std::string& bytes) {
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t n =
          ::send(peer_.get(), bytes.data() + at, bytes.size() - at, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) at += static_cast<size_t>(n);
      if (n <= 0 && errno != EAGAIN) return;
      Work(milliseconds(1));
    }
  }

  void Work(std::chrono::steady_clock::duration time) {
    io_.restart();
    io_.run_for(time);
  }

  // What the server has sent; waits until `size` bytes are there, or the end.
  std::string Receive(size_t size) {
    std::string out;
    const auto hang = std::chrono::steady_clock::now() + magnetar::testing::kHang;
    while (out.size() < size && std::chrono::steady_clock::now() < hang) {
      char buffer[65536];
      const ssize_t n =
          ::recv(peer_.get(), buffer, std::min(sizeof(buffer), size - out.size()), MSG_DONTWAIT);
      if (n > 0) {
        out.append(buffer, static_cast<size_t>(n));
      } else if (n == 0) {
        break;
      } else {
        Work(milliseconds(1));
      }
    }
    return out;
  }

  std::string ReceiveFrame() {
    std::string frame = Receive(kHeaderBytes);
    if (frame.size() < kHeaderBytes) return frame;
    FrameParser parser(16 << 20);
    std::string_view header(frame);
    (void)parser.Next(header);
    const auto* bytes = reinterpret_cast<const unsigned char*>(frame.data());
    return frame + Receive(static_cast<size_t>(bytes[1]) << 16 | bytes[2] << 8 | bytes[3]);
  }

  void ExpectSilence() {
    Work(milliseconds(50));
    char c;
    EXPECT_EQ(::recv(peer_.get(), &c, 1, MSG_DONTWAIT), -1);
    EXPECT_EQ(errno, EAGAIN);
  }

  void ExpectServed(absl::StatusCode code) {
    const auto hang = std::chrono::steady_clock::now() + magnetar::testing::kHang;
    while (!served_.has_value() && std::chrono::steady_clock::now() < hang) Work(milliseconds(1));
    ASSERT_TRUE(served_.has_value());
    EXPECT_EQ(served_->code(), code) << *served_;
  }

  asio::io_context io_;
  Event wake_{io_.get_executor()};
  std::shared_ptr<Services> services_ = std::make_shared<Services>();
  UniqueFd peer_;
  std::optional<absl::Status> served_;
  Messages collected_;
  bool stubborn_ = true;
  int running_ = 0;
};

TEST_F(ServerTest, UnaryBytes) {
  Start();
  // Request{service "t", method "Echo", payload "hi"} on stream 1.
  const std::string request(
      "\0\0\0\x0d\0\0\0\x01\x01\0\x0a\x01t\x12\x04"
      "Echo\x1a\x02hi",
      23);
  const std::string response("\0\0\0\x04\0\0\0\x01\x02\0\x12\x02hi", 14);
  Send(request);
  EXPECT_EQ(Receive(response.size()), response);
  for (size_t i = 0; i < request.size(); ++i) {
    Start();
    Send(request.substr(0, i));
    Send(request.substr(i));
    EXPECT_EQ(Receive(response.size()), response);
  }
}

TEST_F(ServerTest, StreamEndBytes) {
  Start();
  Send(Open(1, "Close"));
  EXPECT_EQ(Receive(23), std::string("\0\0\0\x03\0\0\0\x01\x03\0"
                                     "bye"
                                     "\0\0\0\0\0\0\0\x01\x03\x05",
                                     23));
  ExpectSilence();
}

TEST_F(ServerTest, DataEndAndCloseBackToBack) {
  Start();
  Send(Open(1, "Collect") + Data(1, "a") + Data(1, "") + Data(1, "c") + End(1));
  peer_.reset();
  ExpectServed(absl::StatusCode::kOk);
  EXPECT_EQ(collected_, (Messages{"a", "", "c", "end"}));
}

TEST_F(ServerTest, DataAndCloseWithoutEnd) {
  Start();
  Send(Open(1, "Collect") + Data(1, "a") + Data(1, "b"));
  peer_.reset();
  ExpectServed(absl::StatusCode::kOk);
  EXPECT_EQ(collected_, (Messages{"a", "b", "UNAVAILABLE"}));
}

TEST_F(ServerTest, EndThatCarriesAMessage) {
  Start();
  Send(Open(1, "Collect") + WireFrame(1, FrameType::kData, kRemoteClosed, "last"));
  EXPECT_EQ(Receive(End(1).size()), End(1));
  EXPECT_EQ(collected_, (Messages{"last", "end"}));
}

TEST_F(ServerTest, RequestThatIsTheOnlyMessage) {
  Start();
  Send(WireFrame(1, FrameType::kRequest, kRemoteClosed, RequestBody("Collect", "only")));
  EXPECT_EQ(Receive(End(1).size()), End(1));
  EXPECT_EQ(collected_, (Messages{"only", "end"}));
}

TEST_F(ServerTest, LateFramesAreDroppedSilently) {
  Start();
  Send(Open(1, "Close"));
  Receive(23);
  Send(Data(1, "window update") + End(1) + Data(1, "more"));
  ExpectSilence();
  Send(Call(3, "Echo", "x"));
  EXPECT_EQ(ReceiveFrame(), Answer(3, std::string("x")));
}

TEST_F(ServerTest, DataForAUnaryCallIsDropped) {
  Start();
  Send(Call(1, "Echo", "x") + Data(1, "y"));
  EXPECT_EQ(ReceiveFrame(), Answer(1, std::string("x")));
  ExpectSilence();
}

TEST_F(ServerTest, RefusesBadStreamIds) {
  Start();
  Send(Call(2, "Echo"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kInvalidArgument);
  Send(Call(5, "Echo"));
  EXPECT_EQ(ReceiveFrame(), Answer(5, std::string()));
  Send(Call(5, "Echo"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kInvalidArgument);
  Send(Call(3, "Echo"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kInvalidArgument);
  Send(Data(7, "never opened"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kInvalidArgument);
  Send(Call(7, "Echo", "still served"));
  EXPECT_EQ(ReceiveFrame(), Answer(7, std::string("still served")));
}

TEST_F(ServerTest, RefusesRequestsItCannotRead) {
  Start();
  Send(WireFrame(1, FrameType::kRequest, 0, "\xff\xff"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kInvalidArgument);
  Send(Call(3, "Nope"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kUnimplemented);
  Send(Call(5, std::string(1000, '\0')));
  const std::string refusal = ReceiveFrame();
  EXPECT_EQ(CodeOf(refusal), absl::StatusCode::kUnimplemented);
  EXPECT_LT(refusal.size(), 1000u);
}

TEST_F(ServerTest, OversizedRequest) {
  Start();
  Send(WireFrame(1, FrameType::kRequest, 0, std::string((4 << 20) + 1, 'x')) +
       Call(3, "Echo", "y"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReceiveFrame(), Answer(3, std::string("y")));
}

TEST_F(ServerTest, OversizedMessageEndsItsStream) {
  Start();
  Send(Open(1, "Collect") + Data(1, std::string((4 << 20) + 1, 'x')));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
  Send(Data(1, "late") + Call(3, "Echo", "y"));
  EXPECT_EQ(ReceiveFrame(), Answer(3, std::string("y")));
  ExpectSilence();
  EXPECT_EQ(collected_, Messages{"RESOURCE_EXHAUSTED"});
}

TEST_F(ServerTest, WhatCannotBeFollowedClosesTheConnection) {
  for (const std::string& bytes :
       {std::string("\0\0\0\0\0\0\0\1\0\0", 10), std::string("\0\0\0\0\0\0\0\1\4\0", 10),
        std::string("\1\0\0\0\0\0\0\1\1\0", 10), std::string("GET / HTTP/1.1\r\n\r\n"),
        Answer(1, std::string("a response"))}) {
    served_.reset();
    Start();
    Send(bytes);
    ExpectServed(absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Receive(1), "");
  }
}

TEST_F(ServerTest, EndInsideAFrame) {
  Start();
  Send(Call(1, "Echo", "x").substr(0, 12));
  peer_.reset();
  ExpectServed(absl::StatusCode::kUnavailable);
}

TEST_F(ServerTest, Deadlines) {
  Start();
  const std::vector<std::pair<int64_t, std::string>> cases = {
      {0, "none"}, {600'000'000'000, "near"}, {7'200'000'000'000, "far"}, {INT64_MAX, "none"}};
  uint32_t id = 1;
  for (const auto& [timeout, expected] : cases) {
    Send(WireFrame(id, FrameType::kRequest, 0, RequestBody("Deadline", "", timeout)));
    EXPECT_EQ(ReceiveFrame(), Answer(id, expected));
    id += 2;
  }
}

std::string Timed(uint32_t id, const std::string& method, int64_t timeout_nano) {
  return WireFrame(id, FrameType::kRequest, 0, RequestBody(method, "", timeout_nano));
}

TEST_F(ServerTest, ADeadlineThatHasPassedIsNotServed) {
  Start();
  Send(Timed(1, "Stubborn", -1) + Timed(3, "Stubborn", INT64_MIN));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(running_, 0);
}

TEST_F(ServerTest, TheDeadlineCancelsTheHandler) {
  Start();
  Send(Timed(1, "Patient", 1'000'000));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kDeadlineExceeded);
  while (running_ > 0) Work(milliseconds(1));
  ExpectSilence();
}

TEST_F(ServerTest, AMethodThatHangsDoesNotTakeTheOthersAlong) {
  Start({.max_streams = 2});
  Send(Timed(1, "Stubborn", 1'000'000) + Timed(3, "Stubborn", 1'000'000));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(running_, 2);
  Send(Call(5, "Echo", "x"));
  EXPECT_EQ(ReceiveFrame(), Answer(5, std::string("x")));
  Send(Call(7, "Stubborn"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
  stubborn_ = false;
  wake_.NotifyAll();
  while (running_ > 0) Work(milliseconds(1));
  ExpectSilence();
  Send(Call(9, "Stubborn"));
  EXPECT_EQ(ReceiveFrame(), Answer(9, std::string("late")));
}

TEST_F(ServerTest, AStreamThatEndsWellNeedsNoCloseOfItsHandler) {
  Start();
  Send(Open(1, "Silent"));
  EXPECT_EQ(ReceiveFrame(), End(1));
  ExpectSilence();
}

TEST_F(ServerTest, ClosesAfterTheLastOfItsStreamsIfAskedTo) {
  Start({.close_after_streams = milliseconds(20)});
  Send(Call(1, "Echo", "a"));
  ReceiveFrame();
  ExpectSilence();
  Send(Open(3, "Idle") + Open(5, "Silent"));
  EXPECT_EQ(ReceiveFrame(), End(5));
  ExpectSilence();
  wake_.NotifyAll();
  Send(End(3));
  EXPECT_EQ(ReceiveFrame(), End(3));
  EXPECT_EQ(Receive(1), "");
  ExpectServed(absl::StatusCode::kUnavailable);
}

TEST_F(ServerTest, TooMuchMetadataIsRefusedUnbuilt) {
  Start();
  std::string pairs;
  for (size_t i = 0; i < kMaxMetadataPairs; ++i) pairs += std::string("\x2a\0", 2);
  Send(WireFrame(1, FrameType::kRequest, 0, RequestBody("Echo", "x") + pairs));
  EXPECT_EQ(ReceiveFrame(), Answer(1, std::string("x")));
  pairs += std::string("\x2a\0", 2);
  Send(WireFrame(3, FrameType::kRequest, 0, pairs + RequestBody("Echo", "x")));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
}

TEST_F(ServerTest, UnreadResponsesCount) {
  constexpr uint32_t kCalls = 40;
  Start({.max_buffered_bytes = 4 << 20});
  std::string calls;
  for (uint32_t i = 0; i < kCalls; ++i) calls += Call(2 * i + 1, "Large", "1000000");
  Send(calls);
  size_t answered = 0;
  size_t refused = 0;
  for (uint32_t i = 0; i < kCalls; ++i) {
    const absl::StatusCode code = CodeOf(ReceiveFrame());
    if (code == absl::StatusCode::kOk) ++answered;
    if (code == absl::StatusCode::kResourceExhausted) ++refused;
  }
  EXPECT_EQ(answered + refused, kCalls);
  EXPECT_GE(answered, 4u);
  EXPECT_GE(refused, 1u);
  // What was read is free again.
  Send(Call(2 * kCalls + 1, "Large", "1000000"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kOk);
}

TEST_F(ServerTest, AFloodedStreamEndsAloneAndGivesItsMemoryBack) {
  Start({.max_stream_backlog_bytes = 100 << 10});
  std::string flood = Open(1, "Idle");
  for (int i = 0; i < 20; ++i) flood += Data(1, std::string(10 << 10, 'x'));
  Send(flood + Call(3, "Echo", "alive"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReceiveFrame(), Answer(3, std::string("alive")));
  wake_.NotifyAll();
  ExpectSilence();
  EXPECT_EQ(collected_, Messages{"RESOURCE_EXHAUSTED"});
}

TEST_F(ServerTest, EmptyMessagesCountToo) {
  Start({.max_stream_backlog_bytes = 64 << 10});
  std::string flood = Open(1, "Idle");
  for (int i = 0; i < 2000; ++i) flood += Data(1, "");
  Send(flood);
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
}

TEST_F(ServerTest, TheConnectionHasABudget) {
  Start({.max_buffered_bytes = 300 << 10});
  for (const uint32_t id : {1u, 3u}) {
    Send(Open(id, "Idle"));
    for (int i = 0; i < 14; ++i) Send(Data(id, std::string(10 << 10, 'x')));
  }
  ExpectSilence();
  Send(Data(3, std::string(100 << 10, 'x')));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
  // Stream 3's share is free again.
  Send(Call(5, "Echo", std::string(100 << 10, 'y')));
  EXPECT_EQ(ReceiveFrame(), Answer(5, std::string(100 << 10, 'y')));
}

TEST_F(ServerTest, TooManyStreams) {
  Start({.max_streams = 2});
  Send(Open(1, "Idle") + Open(3, "Idle") + Open(5, "Idle"));
  EXPECT_EQ(CodeOf(ReceiveFrame()), absl::StatusCode::kResourceExhausted);
  ExpectSilence();
}

// A peer that asks and never reads the answers: the server stops reading it.
TEST_F(ServerTest, APeerThatDoesNotReadIsNotReadEither) {
  Start();
  const std::string bad = Call(2, "Echo");
  std::string batch;
  for (int i = 0; i < 1000; ++i) batch += bad;
  size_t sent = 0;
  for (int idle = 0; idle < 20 && sent < (64u << 20);) {
    const ssize_t n = ::send(peer_.get(), batch.data(), batch.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == static_cast<ssize_t>(batch.size())) {
      sent += batch.size();
      idle = 0;
    } else if (n >= 0) {
      // A frame was cut: finish it, so that the next batch starts a frame.
      sent += static_cast<size_t>(n);
      batch = batch.substr(static_cast<size_t>(n)) + batch.substr(0, static_cast<size_t>(n));
      ++idle;
    } else {
      ++idle;
    }
    Work(milliseconds(2));
  }
  EXPECT_LT(sent, 8u << 20);
  // Another connection is served meanwhile.
  const UniqueFd stalled = std::move(peer_);
  Start();
  Send(Call(1, "Echo", "x"));
  EXPECT_EQ(ReceiveFrame(), Answer(1, std::string("x")));
}

}  // namespace
}  // namespace magnetar::ttrpc
