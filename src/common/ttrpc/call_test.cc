// Client and server against each other, over a socketpair.
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <vector>

#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/common/ttrpc/testing.h"

namespace magnetar::ttrpc {
namespace {

using magnetar::testing::RunFor;
using magnetar::testing::SocketPair;
using std::chrono::milliseconds;
using Messages = std::vector<std::string>;

Co<absl::StatusOr<std::string>> Echo(CallContext, std::string payload) { co_return payload; }

Co<absl::StatusOr<std::string>> Fail(CallContext, std::string payload) {
  co_return absl::NotFoundError(payload);
}

Co<absl::StatusOr<std::string>> Throw(CallContext, std::string) {
  throw std::runtime_error("broken handler");
  co_return std::string();
}

Co<absl::StatusOr<std::string>> Metadata(CallContext context, std::string payload) {
  co_return absl::StrCat(std::string(context.Metadata(payload)),
                         context.deadline.has_value() ? "+" : "-");
}

Co<absl::Status> EchoStream(CallContext, std::shared_ptr<Stream> stream) {
  while (true) {
    auto receive = stream->Receive();
    auto message = co_await std::move(receive);
    if (!message.ok()) co_return message.status();
    if (!message->has_value()) break;
    auto send = stream->Send(std::move(**message));
    const absl::Status sent = co_await std::move(send);
    if (!sent.ok()) co_return sent;
  }
  auto close = stream->CloseSend();
  co_return co_await std::move(close);
}

Co<absl::Status> FailStream(CallContext, std::shared_ptr<Stream> stream) {
  auto send = stream->Send("last words");
  const absl::Status sent = co_await std::move(send);
  if (!sent.ok()) co_return sent;
  co_return absl::DataLossError("gone");
}

Co<absl::Status> SilentStream(CallContext, std::shared_ptr<Stream>) { co_return absl::OkStatus(); }

class CallTest : public ::testing::Test {
 protected:
  void SetUp() override {
    services_->AddUnary("t", "Echo", Echo);
    services_->AddUnary("t", "Fail", Fail);
    services_->AddUnary("t", "Throw", Throw);
    services_->AddUnary("t", "Metadata", Metadata);
    services_->AddUnary("t", "InTurn", [this](CallContext, std::string payload) {
      return InTurn(this, std::move(payload));
    });
    services_->AddUnary("t", "Forever", [this](CallContext, std::string) { return Forever(this); });
    services_->AddStream("t", "EchoStream", EchoStream);
    services_->AddStream("t", "FailStream", FailStream);
    services_->AddStream("t", "SilentStream", SilentStream);
  }

  // Answers the calls with payloads 1, 2, 3 in this order.
  static Co<absl::StatusOr<std::string>> InTurn(CallTest* test, std::string payload) {
    while (test->turn_ != payload) {
      auto wait = test->next_turn_.Wait();
      co_await std::move(wait);
    }
    test->turn_ = std::to_string(std::stoi(payload) + 1);
    test->next_turn_.NotifyAll();
    co_return payload;
  }

  static Co<absl::StatusOr<std::string>> Forever(CallTest* test) {
    struct Count {
      int& running;
      explicit Count(int& r) : running(r) { ++running; }
      ~Count() { --running; }
    } count(test->running_);
    Event never(test->io_.get_executor());
    auto wait = never.Wait();
    co_await std::move(wait);
    auto again = never.Wait();
    co_await std::move(again);
    co_return std::string();
  }

  void Start(Limits server = {}, Limits client = {}) {
    auto [near, far] = SocketPair();
    asio::co_spawn(io_, ServeConnection(std::move(far), services_, server),
                   [this](const std::exception_ptr&, absl::Status status) {
                     served_ = std::move(status);
                     if (stop_when_served_) io_.stop();
                   });
    client_ = Client::Create(io_.get_executor(), std::move(near), client);
  }

  absl::StatusOr<std::string> Call(std::string method, std::string payload,
                                   std::chrono::nanoseconds timeout = {}) {
    auto result =
        RunFor(io_, client_->CallRaw("t", std::move(method), std::move(payload), timeout, {}));
    if (!result.has_value()) return absl::InternalError("the test took too long");
    return *std::move(result);
  }

  void WaitServed() {
    stop_when_served_ = true;
    if (!served_.has_value()) {
      io_.restart();
      io_.run_for(magnetar::testing::kHang);
    }
  }

  asio::io_context io_;
  std::shared_ptr<Services> services_ = std::make_shared<Services>();
  std::shared_ptr<Client> client_;
  std::optional<absl::Status> served_;
  bool stop_when_served_ = false;
  int running_ = 0;
  std::string turn_ = "1";
  Event next_turn_{io_.get_executor()};
};

TEST_F(CallTest, Unary) {
  Start();
  EXPECT_EQ(*Call("Echo", "hello"), "hello");
  EXPECT_EQ(*Call("Echo", ""), "");
  const std::string big((4 << 20) - 100, 'x');
  EXPECT_EQ(*Call("Echo", big), big);
  EXPECT_EQ(Call("Fail", "nothing here").status(), absl::NotFoundError("nothing here"));
  EXPECT_EQ(Call("Throw", "").status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Call("Nope", "").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Call("Echo", "still alive").value(), "still alive");
}

TEST_F(CallTest, TooLargeToSend) {
  Start();
  EXPECT_EQ(Call("Echo", std::string(4 << 20, 'x')).status().code(),
            absl::StatusCode::kResourceExhausted);
  Start({.max_message_bytes = 1000}, {});
  EXPECT_EQ(Call("Echo", std::string(2000, 'x')).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*Call("Echo", "y"), "y");
}

TEST_F(CallTest, MetadataAndDeadline) {
  Start();
  std::vector<std::pair<std::string, std::string>> metadata = {{"a", "1"}, {"b", "2"}};
  auto result = RunFor(io_, client_->CallRaw("t", "Metadata", "b", {}, metadata));
  EXPECT_EQ(**result, "2-");
  result = RunFor(io_, client_->CallRaw("t", "Metadata", "c", std::chrono::hours(1), metadata));
  EXPECT_EQ(**result, "+");
}

TEST_F(CallTest, DeadlineExpires) {
  Start();
  EXPECT_EQ(Call("Forever", "", milliseconds(20)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(*Call("Echo", "next"), "next");
  // The server gives it up as well, perhaps a moment later.
  io_.restart();
  while (running_ > 0 && io_.run_one_for(magnetar::testing::kHang) > 0) {
  }
  EXPECT_EQ(running_, 0);
}

Co<absl::StatusOr<std::string>> InTurnInto(std::shared_ptr<Client> client, std::string turn,
                                           Messages* order) {
  auto call = client->CallRaw("t", "InTurn", std::move(turn), {}, {});
  auto result = co_await std::move(call);
  order->push_back(result.value_or(result.status().ToString()));
  co_return result;
}

TEST_F(CallTest, CallsOverlapAndAnswersComeInAnyOrder) {
  Start();
  Messages order;
  for (const char* turn : {"2", "1"}) {
    asio::co_spawn(io_, InTurnInto(client_, turn, &order), asio::detached);
  }
  (void)RunFor(io_, InTurnInto(client_, "3", &order));
  EXPECT_EQ(order, (Messages{"1", "2", "3"}));
}

TEST_F(CallTest, CloseCancelsWhatIsInFlight) {
  Start();
  Messages order;
  auto pending = [](std::shared_ptr<Client> client, Messages* out) -> Co<void> {
    auto call = client->CallRaw("t", "Forever", "", {}, {});
    auto result = co_await std::move(call);
    out->push_back(absl::StatusCodeToString(result.status().code()));
  };
  asio::co_spawn(io_, pending(client_, &order), asio::detached);
  EXPECT_EQ(*Call("Echo", "x"), "x");
  EXPECT_EQ(running_, 1);
  client_->Close();
  WaitServed();
  EXPECT_TRUE(served_.has_value() && served_->ok());
  EXPECT_EQ(running_, 0);
  EXPECT_EQ(order, Messages{"UNAVAILABLE"});
  EXPECT_EQ(Call("Echo", "x").status().code(), absl::StatusCode::kUnavailable);
  auto closed = [](std::shared_ptr<Client> client) -> Co<bool> {
    auto gone = client->Closed();
    co_await std::move(gone);
    co_return true;
  };
  EXPECT_TRUE(RunFor(io_, closed(client_)).has_value());
}

TEST_F(CallTest, DroppingTheClientClosesTheConnection) {
  Start();
  EXPECT_EQ(*Call("Echo", "x"), "x");
  client_.reset();
  WaitServed();
  EXPECT_TRUE(served_.has_value() && served_->ok());
}

TEST_F(CallTest, ServingCanBeCancelled) {
  auto [near, far] = SocketPair();
  asio::cancellation_signal cancel;
  asio::co_spawn(io_, ServeConnection(std::move(far), services_),
                 asio::bind_cancellation_slot(
                     cancel.slot(), [this](const std::exception_ptr&, absl::Status status) {
                       served_ = std::move(status);
                     }));
  client_ = Client::Create(io_.get_executor(), std::move(near));
  auto forever = [](std::shared_ptr<Client> client) -> Co<void> {
    auto call = client->CallRaw("t", "Forever", "", {}, {});
    (void)co_await std::move(call);
  };
  asio::co_spawn(io_, forever(client_), asio::detached);
  EXPECT_EQ(*Call("Echo", "x"), "x");
  EXPECT_EQ(running_, 1);
  cancel.emit(asio::cancellation_type::terminal);
  io_.restart();
  io_.run_for(magnetar::testing::kHang);
  EXPECT_EQ(running_, 0);
  ASSERT_TRUE(served_.has_value());
  EXPECT_EQ(served_->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Call("Echo", "").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(CallTest, TooManyCallsInFlight) {
  Start({.max_streams = 2});
  for (int i = 0; i < 2; ++i) {
    auto forever = [](std::shared_ptr<Client> client) -> Co<void> {
      auto call = client->CallRaw("t", "Forever", "", {}, {});
      (void)co_await std::move(call);
    };
    asio::co_spawn(io_, forever(client_), asio::detached);
  }
  EXPECT_EQ(Call("Echo", "").status().code(), absl::StatusCode::kResourceExhausted);
  client_->Close();
  WaitServed();
}

// Opens a stream, sends `messages`, closes, and returns what comes back, the end last.
Co<Messages> Exchange(std::shared_ptr<Client> client, std::string method, Messages messages) {
  Messages out;
  auto open = client->OpenStream("t", method);
  auto stream = co_await std::move(open);
  if (!stream.ok()) co_return Messages{stream.status().ToString()};
  for (const std::string& message : messages) {
    auto send = (*stream)->Send(message);
    const absl::Status sent = co_await std::move(send);
    if (!sent.ok()) out.push_back(absl::StrCat("send: ", sent.ToString()));
  }
  if (!messages.empty()) {
    auto close = (*stream)->CloseSend();
    const absl::Status closed = co_await std::move(close);
    if (!closed.ok()) out.push_back(absl::StrCat("close: ", closed.ToString()));
  }
  while (true) {
    auto receive = (*stream)->Receive();
    auto message = co_await std::move(receive);
    if (!message.ok()) {
      out.push_back(message.status().ToString());
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

TEST_F(CallTest, Streams) {
  Start();
  EXPECT_EQ(*RunFor(io_, Exchange(client_, "EchoStream", {"a", "", "c"})),
            (Messages{"a", "", "c", "end"}));
  EXPECT_EQ(*RunFor(io_, Exchange(client_, "FailStream", {})),
            (Messages{"last words", "DATA_LOSS: gone"}));
  EXPECT_EQ(*RunFor(io_, Exchange(client_, "SilentStream", {})), (Messages{"end"}));
  const Messages none = *RunFor(io_, Exchange(client_, "Nope", {}));
  EXPECT_EQ(none.at(0).substr(0, 13), "UNIMPLEMENTED");
  EXPECT_EQ(*Call("Echo", "still alive"), "still alive");
}

TEST_F(CallTest, SeveralMessagesAtOnce) {
  Start();
  const auto stream = *RunFor(io_, client_->OpenStream("t", "EchoStream"));
  ASSERT_TRUE(stream.ok());
  const Messages messages = {"one", "", std::string(100000, 'x'), "four"};
  const Stream::Sent sent = *RunFor(io_, (*stream)->SendAll(messages));
  EXPECT_EQ(sent.status, absl::OkStatus());
  EXPECT_EQ(sent.sent, messages.size());
  for (const std::string& message : messages) {
    const auto echo = *RunFor(io_, (*stream)->Receive());
    ASSERT_TRUE(echo.ok());
    EXPECT_EQ(*echo, message);
  }
  EXPECT_EQ(RunFor(io_, (*stream)->SendAll({}))->status, absl::OkStatus());
  (*stream)->Cancel();
  const Stream::Sent late = *RunFor(io_, (*stream)->SendAll(messages));
  EXPECT_EQ(late.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(late.sent, 0U);
}

// How many got through is told, so that the rest can go to someone else.
TEST_F(CallTest, SeveralMessagesOfWhichSomeAreSent) {
  auto [near, far] = SocketPair();
  client_ = Client::Create(io_.get_executor(), std::move(near));
  const auto stream = *RunFor(io_, client_->OpenStream("t", "EchoStream"));
  ASSERT_TRUE(stream.ok());
  // More than the socket takes, and nobody reads it.
  constexpr size_t kMessageBytes = 32 << 10;
  std::optional<Stream::Sent> sent;
  asio::co_spawn(io_, (*stream)->SendAll(Messages(100, std::string(kMessageBytes, 'x'))),
                 [&](const std::exception_ptr&, Stream::Sent result) {
                   sent = std::move(result);
                   io_.stop();
                 });
  io_.restart();
  io_.run_for(milliseconds(20));
  EXPECT_FALSE(sent.has_value());
  client_->Close();
  io_.restart();
  io_.run_for(magnetar::testing::kHang);
  ASSERT_TRUE(sent.has_value());
  EXPECT_EQ(sent->status.code(), absl::StatusCode::kUnavailable);

  size_t whole = 0;
  FrameParser parser(kMessageBytes);
  std::string buffer(kMessageBytes, '\0');
  for (ssize_t n; (n = ::read(far.get(), buffer.data(), buffer.size())) > 0;) {
    std::string_view input(buffer.data(), static_cast<size_t>(n));
    while (!input.empty()) {
      const auto frame = parser.Next(input);
      ASSERT_TRUE(frame.ok());
      if (frame->has_value() && (*frame)->body.size() == kMessageBytes) ++whole;
    }
  }
  EXPECT_GT(whole, 0U);
  EXPECT_LT(whole, 100U);
  EXPECT_EQ(sent->sent, whole);
}

TEST_F(CallTest, ManyStreamsInARowLeaveNothing) {
  Start({.max_streams = 2}, {.max_streams = 2});
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(*RunFor(io_, Exchange(client_, "EchoStream", {"a"})), (Messages{"a", "end"}));
  }
}

TEST_F(CallTest, CancelledStream) {
  Start();
  auto test = [](std::shared_ptr<Client> client) -> Co<Messages> {
    auto open = client->OpenStream("t", "EchoStream");
    auto stream = co_await std::move(open);
    Messages out;
    auto receiver = [](std::shared_ptr<Stream> s, Messages* to) -> Co<void> {
      auto receive = s->Receive();
      auto message = co_await std::move(receive);
      to->push_back(absl::StatusCodeToString(message.status().code()));
    };
    asio::co_spawn(co_await asio::this_coro::executor, receiver(*stream, &out), asio::detached);
    auto call = client->CallRaw("t", "Echo", "", {}, {});
    (void)co_await std::move(call);
    (*stream)->Cancel();
    auto call2 = client->CallRaw("t", "Echo", "", {}, {});
    (void)co_await std::move(call2);
    auto send = (*stream)->Send("x");
    const absl::Status sent = co_await std::move(send);
    out.push_back(absl::StatusCodeToString(sent.code()));
    co_return out;
  };
  EXPECT_EQ(*RunFor(io_, test(client_)), (Messages{"CANCELLED", "CANCELLED"}));
}

}  // namespace
}  // namespace magnetar::ttrpc
