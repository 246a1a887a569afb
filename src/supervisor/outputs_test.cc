// containerd's side and the guest's side of an output, with the supervisor between them.
#include "src/supervisor/outputs.h"

#include <gtest/gtest.h>

#include <boost/asio/detached.hpp>
#include <chrono>
#include <deque>

#include "absl/strings/str_cat.h"
#include "magnetar/event.h"
#include "magnetar/output.h"
#include "magnetar/ports.h"
#include "magnetar/streaming/output_stream.h"
#include "src/common/streaming/testing.h"
#include "src/supervisor/async_test_util.h"

namespace magnetar::supervisor {
namespace {

using streaming::testing::Frames;
using streaming::testing::OpenStdio;
using streaming::testing::ReadOutput;

// The guest's ends, in the order in which they were asked for.
class GuestEnds : public GuestLink {
 public:
  Co<absl::Status> Ready() override { co_return absl::OkStatus(); }
  Co<absl::StatusOr<UniqueFd>> Connect(uint32_t port) override {
    EXPECT_EQ(port, kOutputPort);
    if (refuse) co_return absl::UnavailableError("nothing listens on port 1029");
    auto [near, far] = SocketPair();
    ends.push_back(std::move(far));
    co_return std::move(near);
  }
  void Close() override {}

  std::deque<UniqueFd> ends;
  bool refuse = false;
};

class OutputsTest : public testing::Test {
 protected:
  std::shared_ptr<ttrpc::Client> Connect(const std::string& received = "") {
    auto [near, far] = SocketPair();
    ++served_;
    asio::co_spawn(context_, outputs_->Serve(std::move(far), received),
                   [this](const std::exception_ptr&) { --served_; });
    return ttrpc::Client::Create(context_.get_executor(), std::move(near));
  }
  std::shared_ptr<ttrpc::Stream> Open(const std::shared_ptr<ttrpc::Client>& client,
                                      const std::string& id) {
    auto stream = Await(context_, OpenStdio(client, id));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return stream.ok() ? *stream : nullptr;
  }
  // The guest's end, once the stream's name has come, which it accepts.
  UniqueFd Accept(const std::string& id) {
    RunUntil(context_, [this] { return !link_->ends.empty(); });
    UniqueFd guest = std::move(link_->ends.front());
    link_->ends.pop_front();
    std::string name;
    RunUntil(context_, [&] {
      name += ReadAvailable(guest.get());
      return name.size() > id.size();
    });
    EXPECT_EQ(name, std::string(1, static_cast<char>(id.size())) + id);
    const char claimed = kOutputClaimed;
    EXPECT_EQ(::send(guest.get(), &claimed, 1, 0), 1);
    return guest;
  }
  void Send(const UniqueFd& guest, const std::string& data) {
    ASSERT_EQ(::send(guest.get(), data.data(), data.size(), 0), static_cast<ssize_t>(data.size()));
  }
  bool Closed(const UniqueFd& guest) {
    bool eof = false;
    ReadAvailable(guest.get(), &eof);
    return eof;
  }

  asio::io_context context_;
  std::shared_ptr<GuestEnds> link_ = std::make_shared<GuestEnds>();
  std::vector<std::string> log_;
  std::shared_ptr<Outputs> outputs_ = std::make_shared<Outputs>(
      context_.get_executor(), link_, [this](const std::string& line) { log_.push_back(line); });
  int served_ = 0;
};

TEST_F(OutputsTest, CarriesAllOfItThenTheEndThenTellsTheGuest) {
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  const UniqueFd guest = Accept("c-stdout");
  Send(guest, "hello ");
  Send(guest, "world");
  ::shutdown(guest.get(), SHUT_WR);
  context_.poll();
  EXPECT_FALSE(Closed(guest));
  const Frames frames = Await(context_, ReadOutput(stream, 4));
  EXPECT_TRUE(frames.ended);
  EXPECT_EQ(frames.data, "hello world");
  RunUntil(context_, [&] { return Closed(guest); });
  EXPECT_EQ(outputs_->size(), 0u);
  // The client never closes by itself.
  RunUntil(context_, [this] { return served_ == 0; });
}

// containerd's reader grants when it has read, and must not find the stream closed by then.
TEST_F(OutputsTest, TheEndComesAfterTheReadersNextGrant) {
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  const UniqueFd guest = Accept("c-stdout");
  Send(guest, "hello");
  ::shutdown(guest.get(), SHUT_WR);
  const auto grant = [&] {
    EXPECT_TRUE(Await(context_, stream->Send(streaming::WindowUpdateFrame(64 << 10))).ok());
  };
  grant();
  const auto data = Await(context_, stream->Receive());
  ASSERT_TRUE(data.ok() && data->has_value()) << data.status();
  bool ended = false;
  asio::co_spawn(context_, stream->Receive(),
                 [&](const std::exception_ptr&, const auto& end) { ended = end.ok() && !*end; });
  // Longer than a busy containerd lets it wait.
  context_.run_for(std::chrono::seconds(2));
  EXPECT_FALSE(ended);
  grant();
  RunUntil(context_, [&] { return ended; });
  EXPECT_TRUE(Await(context_, stream->CloseSend()).ok());
  RunUntil(context_, [&] { return Closed(guest); });
}

TEST_F(OutputsTest, IsAcceptedBeforeTheGuestHasAnswered) {
  const auto client = Connect();
  EXPECT_NE(Open(client, "c-stderr"), nullptr);
}

TEST_F(OutputsTest, WhatWasNotDeliveredWaitsForAClientThatComesBack) {
  auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  const UniqueFd guest = Accept("c-stdout");
  Send(guest, "one");
  EXPECT_EQ(Await(context_, ReadOutput(stream, 100, 3)).data, "one");
  client->Close();
  RunUntil(context_, [this] { return served_ == 0; });
  Send(guest, "two");
  ::shutdown(guest.get(), SHUT_WR);
  context_.poll();
  EXPECT_FALSE(Closed(guest));
  const auto again = Connect();
  const Frames frames = Await(context_, ReadOutput(Open(again, "c-stdout"), 100));
  EXPECT_EQ(frames.data, "two");
  EXPECT_TRUE(frames.ended);
  EXPECT_TRUE(link_->ends.empty());
}

TEST_F(OutputsTest, AGuestThatForgetsEndsItAndNobodyKeepsIt) {
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  UniqueFd guest = Accept("c-stdout");
  Send(guest, "last words");
  guest.reset();
  const Frames frames = Await(context_, ReadOutput(stream, 100));
  EXPECT_EQ(frames.data, "last words");
  EXPECT_TRUE(frames.ended);
  client->Close();
  RunUntil(context_, [this] { return outputs_->size() == 0; });
}

TEST_F(OutputsTest, OfAnAbsentClientTooOnceTheGuestForgets) {
  const auto client = Connect();
  Open(client, "c-stdout");
  UniqueFd guest = Accept("c-stdout");
  Send(guest, "x");
  RunUntil(context_, [&] { return ReadAvailable(guest.get()).empty(); });
  client->Close();
  RunUntil(context_, [this] { return served_ == 0; });
  EXPECT_EQ(outputs_->size(), 1u);
  guest.reset();
  RunUntil(context_, [this] { return outputs_->size() == 0; });
}

TEST_F(OutputsTest, AClientThatLeavesBeforeAProcessHasTheStreamWithdrawsIt) {
  const auto client = Connect();
  Open(client, "c-stdout");
  RunUntil(context_, [this] { return !link_->ends.empty(); });
  client->Close();
  RunUntil(context_, [this] { return outputs_->size() == 0; });
  RunUntil(context_, [this] { return Closed(link_->ends.front()); });
  EXPECT_TRUE(log_.empty());
}

TEST_F(OutputsTest, AGuestThatRefusesEndsItWithAnError) {
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  RunUntil(context_, [this] {
    return !link_->ends.empty() && !ReadAvailable(link_->ends.front().get()).empty();
  });
  link_->ends.front().reset();
  const Frames frames = Await(context_, ReadOutput(stream, 100));
  EXPECT_FALSE(frames.ended);
  EXPECT_EQ(frames.status.code(), absl::StatusCode::kNotFound) << frames.status;
  RunUntil(context_, [this] { return outputs_->size() == 0; });
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_NE(log_[0].find("stream c-stdout: "), std::string::npos) << log_[0];
}

// Its process would block if nobody read it.
TEST_F(OutputsTest, AGuestThatHasNoEarIsAskedAgain) {
  link_->refuse = true;
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  RunUntil(context_, [this] { return log_.size() == 1; });
  link_->refuse = false;
  const UniqueFd guest = Accept("c-stdout");
  Send(guest, "late");
  EXPECT_EQ(Await(context_, ReadOutput(stream, 100, 4)).data, "late");
  EXPECT_EQ(log_.size(), 1u);
}

TEST_F(OutputsTest, AClientThatWantsNoMoreIsToldToTheGuest) {
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  const UniqueFd guest = Accept("c-stdout");
  Send(guest, "one");
  EXPECT_EQ(Await(context_, ReadOutput(stream, 100, 3)).data, "one");
  EXPECT_TRUE(Await(context_, stream->CloseSend()).ok());
  RunUntil(context_, [&] { return Closed(guest); });
  EXPECT_EQ(outputs_->size(), 0u);
}

TEST_F(OutputsTest, TheOldestThatNobodyReadsMakesRoom) {
  std::vector<std::shared_ptr<ttrpc::Client>> clients;
  std::vector<UniqueFd> guests;
  for (size_t i = 0; i < Outputs::kMax; ++i) {
    clients.push_back(Connect());
    Open(clients.back(), absl::StrCat("c", i, "-stdout"));
    guests.push_back(Accept(absl::StrCat("c", i, "-stdout")));
  }
  context_.restart();
  context_.poll();
  const auto late = Connect();
  EXPECT_EQ(Await(context_, OpenStdio(late, "late-stdout")).status().code(),
            absl::StatusCode::kResourceExhausted);
  for (const size_t lost : {7, 3}) clients[lost]->Close();
  RunUntil(context_, [this] { return served_ == static_cast<int>(Outputs::kMax) - 2; });
  EXPECT_EQ(outputs_->size(), Outputs::kMax);
  const auto next = Connect();
  EXPECT_NE(Open(next, "next-stdout"), nullptr);
  RunUntil(context_, [&] { return Closed(guests[3]); });
  EXPECT_FALSE(Closed(guests[7]));
}

TEST_F(OutputsTest, AGuestThatAnswersNonsenseEndsItWithAnError) {
  const auto client = Connect();
  const auto stream = Open(client, "c-stdout");
  RunUntil(context_, [this] { return !link_->ends.empty(); });
  Send(link_->ends.front(), "nonsense");
  const Frames frames = Await(context_, ReadOutput(stream, 100));
  EXPECT_EQ(frames.status.code(), absl::StatusCode::kInternal) << frames.status;
}

TEST_F(OutputsTest, AStalledClientHoldsNoMoreThanItsBuffers) {
  const auto client = Connect();
  Open(client, "c-stdout");
  const UniqueFd guest = Accept("c-stdout");
  const std::string chunk(65536, 'x');
  size_t taken = 0;
  for (int idle = 0; idle < 5;) {
    const ssize_t n = ::send(guest.get(), chunk.data(), chunk.size(), 0);
    if (n > 0) {
      taken += static_cast<size_t>(n);
      idle = 0;
    } else {
      ++idle;
    }
    context_.restart();
    context_.run_for(std::chrono::milliseconds(5));
  }
  // And the socket's own.
  EXPECT_LE(taken, streaming::OutputStream::kBufferBytes + (512 << 10));
}

TEST_F(OutputsTest, InputsAndStrangeNamesAreRefused) {
  for (const std::string id : {"c-stdin", "../c-stdout", "c"}) {
    const auto client = Connect();
    const auto stream = Await(context_, OpenStdio(client, id));
    EXPECT_EQ(stream.status().code(), absl::StatusCode::kInvalidArgument) << id;
  }
  EXPECT_EQ(outputs_->size(), 0u);
}

}  // namespace
}  // namespace magnetar::supervisor
