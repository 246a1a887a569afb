#include "guest-agent/agent/host_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "guest-agent/testing/loop.h"

namespace magnetar::guest {
namespace {

using testing::Loop;
using testing::Wire;
using Stream = std::shared_ptr<ttrpc::Stream>;

class HostRequestsTest : public ::testing::Test {
 protected:
  HostRequestsTest() : host_(loop_.executor(), Times()) {
    auto services = std::make_shared<ttrpc::Services>();
    services->AddStream("A", "HostRequests", [this](const ttrpc::CallContext&, Stream stream) {
      return host_.Serve(std::move(stream));
    });
    services_ = services;
  }
  static HostRequestTimes Times() {
    HostRequestTimes times;
    times.connect = std::chrono::milliseconds(200);
    times.prepare = std::chrono::milliseconds(300);
    times.release = std::chrono::milliseconds(300);
    return times;
  }
  Stream Connect() {
    wires_.push_back(std::make_unique<Wire>(loop_, services_));
    auto open = wires_.back()->client->OpenStream("A", "HostRequests");
    auto stream = loop_.Run(std::move(open));
    EXPECT_TRUE(stream.ok());
    loop_.Settle(std::chrono::milliseconds(5));
    return *stream;
  }
  agent::v1::HostRequest Next(const Stream& stream) {
    const auto message = loop_.Run(stream->Receive());
    agent::v1::HostRequest request;
    EXPECT_TRUE(message.ok() && message->has_value() && request.ParseFromString(**message));
    return request;
  }
  void Answer(const Stream& stream, const agent::v1::HostResponse& response) {
    EXPECT_TRUE(loop_.Run(stream->Send(response.SerializeAsString())).ok());
  }
  // Begins a Prepare whose outcome lands in `result`.
  void BeginPrepare(const std::string& id) {
    asio::co_spawn(loop_.context, host_.Prepare(id, {"overlay"}),
                   [this](std::exception_ptr, auto answer) { result_ = std::move(answer); });
    loop_.Settle(std::chrono::milliseconds(5));
  }

  Loop loop_;
  HostRequests host_;
  std::shared_ptr<const ttrpc::Services> services_;
  std::vector<std::unique_ptr<Wire>> wires_;
  std::optional<absl::StatusOr<agent::v1::PreparedContainer>> result_;
};

TEST_F(HostRequestsTest, AsksAndIsAnswered) {
  const Stream daemon = Connect();
  BeginPrepare("c");
  const agent::v1::HostRequest request = Next(daemon);
  EXPECT_EQ(request.prepare().container_id(), "c");
  EXPECT_EQ(request.prepare().rootfs_mount_types(0), "overlay");
  agent::v1::HostResponse response;
  response.set_id(request.id());
  response.mutable_prepared()->set_spec("{}");
  Answer(daemon, response);
  loop_.Settle();
  ASSERT_TRUE(result_.has_value());
  EXPECT_EQ((*result_)->spec(), "{}");
  EXPECT_EQ(host_.waiting(), 0U);
}

TEST_F(HostRequestsTest, PassesErrorsOn) {
  const Stream daemon = Connect();
  BeginPrepare("c");
  agent::v1::HostResponse response;
  response.set_id(Next(daemon).id());
  response.set_code(5);
  response.set_message("unknown");
  Answer(daemon, response);
  loop_.Settle();
  EXPECT_EQ(result_->status(), absl::NotFoundError("unknown"));
  BeginPrepare("c");
  response.set_id(Next(daemon).id());
  response.set_code(99);
  Answer(daemon, response);
  loop_.Settle();
  EXPECT_EQ(result_->status().code(), absl::StatusCode::kUnknown);
}

TEST_F(HostRequestsTest, WaitsForADaemonAndGivesUp) {
  EXPECT_EQ(loop_.Run(host_.Prepare("c", {})).status().code(), absl::StatusCode::kUnavailable);
  Connect();
  EXPECT_EQ(loop_.Run(host_.Prepare("c", {})).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(host_.waiting(), 0U);
}

TEST_F(HostRequestsTest, AsksTheNextDaemonAgain) {
  const Stream first = Connect();
  BeginPrepare("c");
  const uint64_t id = Next(first).id();
  wires_[0]->client->Close();
  const Stream second = Connect();
  const agent::v1::HostRequest again = Next(second);
  EXPECT_EQ(again.id(), id);
  agent::v1::HostResponse response;
  response.set_id(id);
  response.mutable_prepared();
  Answer(second, response);
  loop_.Settle();
  EXPECT_TRUE(result_->ok());
}

TEST_F(HostRequestsTest, ANewDaemonReplacesTheOld) {
  const Stream first = Connect();
  const Stream second = Connect();
  EXPECT_EQ(loop_.Run(first->Receive()).status().code(), absl::StatusCode::kCancelled);
  BeginPrepare("c");
  EXPECT_EQ(Next(second).prepare().container_id(), "c");
}

TEST_F(HostRequestsTest, KeepsReleasesForTheNextDaemon) {
  loop_.Run(host_.Release("a"));
  loop_.Run(host_.Release("b"));
  EXPECT_EQ(host_.waiting(), 2U);
  const Stream daemon = Connect();
  for (const char* id : {"a", "b"}) {
    const agent::v1::HostRequest request = Next(daemon);
    EXPECT_EQ(request.release().container_id(), id);
    agent::v1::HostResponse response;
    response.set_id(request.id());
    response.mutable_released();
    Answer(daemon, response);
  }
  loop_.Settle();
  EXPECT_EQ(host_.waiting(), 0U);
}

TEST_F(HostRequestsTest, AReleaseDoesNotWaitForADeadDaemon) {
  const Stream daemon = Connect();
  bool done = false;
  asio::co_spawn(loop_.context, host_.Release("c"), [&](std::exception_ptr) { done = true; });
  loop_.Settle(std::chrono::milliseconds(20));
  EXPECT_FALSE(done);
  wires_[0]->client->Close();
  loop_.Settle(std::chrono::milliseconds(20));
  EXPECT_TRUE(done);
}

TEST_F(HostRequestsTest, KeepsABoundedNumberOfEvents) {
  for (size_t i = 0; i < HostRequests::kMaxEvents + 5; ++i) {
    agent::v1::GuestEvent event;
    event.set_kind(agent::v1::GuestEvent::OOM);
    event.set_container_id(absl::StrCat("c", i));
    host_.Publish(event);
  }
  const Stream daemon = Connect();
  EXPECT_EQ(Next(daemon).event().container_id(), "c5");
}

TEST_F(HostRequestsTest, EndsTheStreamOfADaemonThatTalksNonsense) {
  const Stream daemon = Connect();
  ASSERT_TRUE(loop_.Run(daemon->Send("\xff\xff\xff")).ok());
  EXPECT_EQ(loop_.Run(daemon->Receive()).status().code(), absl::StatusCode::kInvalidArgument);
  // An answer to nothing is nothing.
  const Stream next = Connect();
  agent::v1::HostResponse response;
  response.set_id(12345);
  Answer(next, response);
  BeginPrepare("c");
  EXPECT_EQ(Next(next).prepare().container_id(), "c");
}

}  // namespace
}  // namespace magnetar::guest
