#include "guest-agent/agent/host_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "guest-agent/testing/loop.h"

namespace magnetar::guest {
namespace {

using testing::Loop;
using testing::Wire;
using Stream = std::shared_ptr<ttrpc::Stream>;

// A daemon's connection that has broken without a word.
class DeadStream : public ttrpc::Stream {
 public:
  explicit DeadStream(const asio::any_io_executor& executor) : cancelled_(executor) {}
  Co<absl::StatusOr<std::optional<std::string>>> Receive() override {
    co_await cancelled_.Wait();
    co_return absl::CancelledError("cancelled");
  }
  Co<absl::Status> Send(std::string) override { co_return absl::UnavailableError("broken"); }
  Co<absl::Status> CloseSend() override { co_return absl::UnavailableError("broken"); }
  void Cancel() override { cancelled_.Set(); }

 private:
  Event cancelled_;
};

class HostRequestsTest : public ::testing::Test {
 protected:
  // No time of these runs out in a test.
  HostRequestsTest() : HostRequestsTest(Patient()) {}
  explicit HostRequestsTest(HostRequestTimes times) : host_(loop_.executor(), times) {
    auto services = std::make_shared<ttrpc::Services>();
    services->AddStream("A", "HostRequests", [this](const ttrpc::CallContext&, Stream stream) {
      ++connected_;
      return host_.Serve(std::move(stream));
    });
    services_ = services;
  }
  static HostRequestTimes Patient() {
    HostRequestTimes times;
    times.connect = times.prepare = times.release = std::chrono::minutes(10);
    times.retry = times.max_retry = std::chrono::minutes(10);
    return times;
  }
  Stream Connect() {
    const int before = connected_;
    wires_.push_back(std::make_unique<Wire>(loop_, services_));
    auto open = wires_.back()->client->OpenStream("A", "HostRequests");
    auto stream = loop_.Run(std::move(open));
    EXPECT_TRUE(stream.ok());
    loop_.Until([&] { return connected_ > before; });
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
  void Answer(const Stream& stream, uint64_t id, int code) {
    agent::v1::HostResponse response;
    response.set_id(id);
    response.set_code(code);
    Answer(stream, response);
  }
  // Begins a Prepare whose outcome lands in `result_`.
  void BeginPrepare(const std::string& id) {
    result_.reset();
    asio::co_spawn(loop_.context, host_.Prepare(id, {"overlay"}),
                   [this](std::exception_ptr, auto answer) { result_ = std::move(answer); });
  }
  void UntilPrepared() {
    loop_.Until([this] { return result_.has_value(); });
  }
  void BeginRelease(const std::string& id) {
    released_ = false;
    asio::co_spawn(loop_.context, host_.Release(id),
                   [this](std::exception_ptr) { released_ = true; });
  }
  void UntilReleased() {
    loop_.Until([this] { return released_; });
  }
  // A release that the daemon does not manage.
  void Refuse(const Stream& daemon, const std::string& id) {
    BeginRelease(id);
    const agent::v1::HostRequest request = Next(daemon);
    EXPECT_EQ(request.release().container_id(), id);
    Answer(daemon, request.id(), 14);
    UntilReleased();
  }

  Loop loop_;
  HostRequests host_;
  int connected_ = 0;
  std::shared_ptr<const ttrpc::Services> services_;
  std::vector<std::unique_ptr<Wire>> wires_;
  std::optional<absl::StatusOr<agent::v1::PreparedContainer>> result_;
  bool released_ = false;
};

class ImpatientHostRequestsTest : public HostRequestsTest {
 protected:
  ImpatientHostRequestsTest() : HostRequestsTest(Times()) {}
  static HostRequestTimes Times() {
    HostRequestTimes times;
    times.connect = times.prepare = times.release = std::chrono::milliseconds(50);
    times.retry = times.max_retry = std::chrono::milliseconds(1);
    return times;
  }
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
  UntilPrepared();
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
  UntilPrepared();
  EXPECT_EQ(result_->status(), absl::NotFoundError("unknown"));
  BeginPrepare("c");
  response.set_id(Next(daemon).id());
  response.set_code(99);
  Answer(daemon, response);
  UntilPrepared();
  EXPECT_EQ(result_->status().code(), absl::StatusCode::kUnknown);
}

TEST_F(ImpatientHostRequestsTest, WaitsForADaemonAndGivesUp) {
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
  UntilPrepared();
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
  loop_.Until([this] { return host_.waiting() == 0; });
}

TEST_F(ImpatientHostRequestsTest, AsksAgainForAReleaseThatFailed) {
  const Stream daemon = Connect();
  // However long that takes here: whoever waits for the release is told to go on.
  BeginRelease("c");
  for (int i = 0; i < 3; ++i) {
    const agent::v1::HostRequest request = Next(daemon);
    EXPECT_EQ(request.release().container_id(), "c");
    Answer(daemon, request.id(), i < 2 ? 14 : 0);
  }
  UntilReleased();
  loop_.Until([this] { return host_.waiting() == 0; });
}

TEST_F(HostRequestsTest, AsksTheNextDaemonForAReleaseThatFailed) {
  Refuse(Connect(), "c");
  EXPECT_EQ(host_.waiting(), 1U);
  const Stream second = Connect();
  const agent::v1::HostRequest again = Next(second);
  EXPECT_EQ(again.release().container_id(), "c");
  Answer(second, again.id(), 0);
  loop_.Until([this] { return host_.waiting() == 0; });
}

TEST_F(HostRequestsTest, AnOldReleaseNeverComesBehindANewContainer) {
  const Stream daemon = Connect();
  Refuse(daemon, "c");
  Refuse(daemon, "other");
  BeginPrepare("c");
  const agent::v1::HostRequest release = Next(daemon);
  EXPECT_EQ(release.release().container_id(), "c");
  const agent::v1::HostRequest prepare = Next(daemon);
  EXPECT_EQ(prepare.prepare().container_id(), "c");
  Answer(daemon, release.id(), 14);
  Answer(daemon, prepare.id(), 5);
  UntilPrepared();
  // The other one's alone is still to be done.
  EXPECT_EQ(host_.waiting(), 1U);
}

TEST_F(HostRequestsTest, AReleaseDoesNotWaitForADeadDaemon) {
  const Stream daemon = Connect();
  BeginRelease("c");
  EXPECT_EQ(Next(daemon).release().container_id(), "c");
  EXPECT_FALSE(released_);
  wires_[0]->client->Close();
  UntilReleased();
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

TEST_F(HostRequestsTest, AnEventThatCouldNotBeSentIsTheNextDaemons) {
  agent::v1::GuestEvent event;
  event.set_kind(agent::v1::GuestEvent::OOM);
  event.set_container_id("c");
  host_.Publish(event);
  auto dead = std::make_shared<DeadStream>(loop_.executor());
  EXPECT_EQ(loop_.Run(host_.Serve(dead)).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Next(Connect()).event().container_id(), "c");
}

TEST_F(HostRequestsTest, AnEventIsToldUntilItIsAnswered) {
  agent::v1::GuestEvent event;
  event.set_kind(agent::v1::GuestEvent::EXITED);
  event.set_container_id("c");
  host_.Publish(event);
  event.set_kind(agent::v1::GuestEvent::DELETED);
  host_.Publish(event);
  const Stream first = Connect();
  const agent::v1::HostRequest exited = Next(first);
  EXPECT_EQ(exited.event().kind(), agent::v1::GuestEvent::EXITED);
  EXPECT_EQ(Next(first).event().kind(), agent::v1::GuestEvent::DELETED);
  // One that could not be published is not told again.
  Answer(first, exited.id(), 14);
  loop_.Until([this] { return host_.waiting() == 1; });
  wires_[0]->client->Close();
  const Stream second = Connect();
  const agent::v1::HostRequest again = Next(second);
  EXPECT_EQ(again.event().kind(), agent::v1::GuestEvent::DELETED);
  Answer(second, again.id(), 0);
  loop_.Until([this] { return host_.waiting() == 0; });
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
