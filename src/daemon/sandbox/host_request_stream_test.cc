#include "src/daemon/sandbox/host_request_stream.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/event.h"

namespace magnetar::daemon {
namespace {

using agent::v1::HostRequest;
using agent::v1::HostResponse;

// A guest at the other end. It sends as long as it is listened to, and reads or does not.
class FakeStream : public ttrpc::Stream {
 public:
  explicit FakeStream(const asio::any_io_executor& executor) : changed_(executor) {}

  Co<absl::StatusOr<std::optional<std::string>>> Receive() override {
    while (!cancelled && received == requests.size() && !ended) {
      auto wait = changed_.Wait();
      co_await std::move(wait);
    }
    if (cancelled) co_return absl::CancelledError("cancelled");
    if (received == requests.size()) co_return std::optional<std::string>();
    co_return std::optional<std::string>(requests[received++]);
  }
  Co<absl::Status> Send(std::string message) override {
    while (!cancelled && !reads) {
      auto wait = changed_.Wait();
      co_await std::move(wait);
    }
    if (cancelled) co_return absl::CancelledError("cancelled");
    if (!send_error.ok()) co_return send_error;
    if (message.size() > limit) co_return absl::ResourceExhaustedError("too large");
    HostResponse response;
    EXPECT_TRUE(response.ParseFromString(message));
    answers.push_back(std::move(response));
    co_return absl::OkStatus();
  }
  Co<absl::Status> CloseSend() override { co_return absl::OkStatus(); }
  void Cancel() override {
    cancelled = true;
    changed_.NotifyAll();
  }
  void Changed() { changed_.NotifyAll(); }

  std::vector<std::string> requests;
  size_t received = 0;
  bool ended = false;
  bool reads = true;
  size_t limit = 4 << 20;
  absl::Status send_error;
  std::vector<HostResponse> answers;
  bool cancelled = false;

 private:
  Event changed_;
};

class HostRequestStreamTest : public testing::Test {
 protected:
  void Ask(uint64_t id) {
    HostRequest request;
    request.set_id(id);
    request.mutable_prepare()->set_container_id(absl::StrCat("c", id));
    stream_->requests.push_back(request.SerializeAsString());
  }
  void Serve(HostRequestHandler handler) {
    asio::co_spawn(io_, ServeHostRequestStream(stream_, std::move(handler)),
                   [this](const std::exception_ptr&, absl::Status status) { result_ = status; });
  }
  // Until nothing moves any more.
  void Run() {
    io_.restart();
    while (io_.poll() > 0) {
    }
  }

  asio::io_context io_{1};
  std::shared_ptr<FakeStream> stream_ = std::make_shared<FakeStream>(io_.get_executor());
  std::optional<absl::Status> result_;
  int handled_ = 0;
};

TEST_F(HostRequestStreamTest, AnswersWithTheIdAndEndsInOrder) {
  Ask(7);
  Serve([](HostRequest request) -> Co<HostResponse> {
    HostResponse response;
    response.mutable_prepared()->set_spec(request.prepare().container_id());
    co_return response;
  });
  Run();
  ASSERT_EQ(stream_->answers.size(), 1u);
  EXPECT_EQ(stream_->answers[0].id(), 7u);
  EXPECT_EQ(stream_->answers[0].prepared().spec(), "c7");
  EXPECT_FALSE(result_.has_value());
  stream_->ended = true;
  stream_->Changed();
  Run();
  EXPECT_EQ(result_, absl::OkStatus());
}

TEST_F(HostRequestStreamTest, AGuestThatDoesNotReadIsNotListenedTo) {
  stream_->reads = false;
  for (uint64_t id = 1; id <= 1000; ++id) Ask(id);
  Serve([this](HostRequest) -> Co<HostResponse> {
    ++handled_;
    co_return HostResponse();
  });
  Run();
  EXPECT_EQ(handled_, static_cast<int>(kMaxHostRequests));
  EXPECT_EQ(stream_->received, kMaxHostRequests);
  stream_->reads = true;
  stream_->Changed();
  Run();
  EXPECT_EQ(handled_, 1000);
  EXPECT_EQ(stream_->answers.size(), 1000u);
}

// Two bytes on the wire for each, and fifty in memory; and what waits for containerd in great
// numbers.
TEST_F(HostRequestStreamTest, ARequestThatSwellsIsNotKept) {
  HostRequest mounts;
  for (int i = 0; i <= kMaxRootfsMounts; ++i) mounts.mutable_prepare()->add_rootfs_mount_types("");
  HostRequest event;
  event.mutable_event()->set_exec_id(std::string(kMaxEventBytes, 'x'));
  for (const HostRequest& request : {mounts, event}) {
    stream_->requests.push_back(request.SerializeAsString());
    result_.reset();
    stream_->cancelled = false;
    Serve([this](HostRequest) -> Co<HostResponse> {
      ++handled_;
      co_return HostResponse();
    });
    Run();
    EXPECT_EQ(handled_, 0);
    ASSERT_TRUE(result_.has_value());
    EXPECT_TRUE(absl::IsInvalidArgument(*result_)) << *result_;
  }
}

// They wait for containerd, and nothing else does behind them.
TEST_F(HostRequestStreamTest, EventsThatWaitHoldNothingBack) {
  HostRequest event;
  event.mutable_event()->set_container_id("c");
  for (size_t i = 0; i < kMaxHostRequests + 1; ++i) {
    stream_->requests.push_back(event.SerializeAsString());
  }
  Ask(7);
  auto away = std::make_shared<Event>(io_.get_executor());
  Serve([away](HostRequest request) -> Co<HostResponse> {
    if (request.has_event()) {
      auto wait = away->Wait();
      co_await std::move(wait);
    }
    co_return HostResponse();
  });
  Run();
  ASSERT_EQ(stream_->answers.size(), 1u);
  EXPECT_EQ(stream_->answers[0].id(), 7u);
}

TEST_F(HostRequestStreamTest, EventsAreAnswered) {
  HostRequest request;
  request.mutable_event()->set_container_id("c");
  for (int i = 0; i < 200; ++i) stream_->requests.push_back(request.SerializeAsString());
  Serve([this](HostRequest) -> Co<HostResponse> {
    ++handled_;
    co_return HostResponse();
  });
  Run();
  EXPECT_EQ(handled_, 200);
  EXPECT_EQ(stream_->answers.size(), 200u);
}

TEST_F(HostRequestStreamTest, AnAnswerThatIsTooLargeBecomesAnError) {
  stream_->limit = 100;
  Ask(1);
  Ask(2);
  Serve([](HostRequest request) -> Co<HostResponse> {
    HostResponse response;
    response.mutable_prepared()->set_spec(std::string(request.id() == 1 ? 200 : 1, 'x'));
    co_return response;
  });
  Run();
  ASSERT_EQ(stream_->answers.size(), 2u);
  EXPECT_EQ(stream_->answers[0].id(), 1u);
  EXPECT_EQ(stream_->answers[0].code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(stream_->answers[1].id(), 2u);
  EXPECT_EQ(stream_->answers[1].code(), 0);
  EXPECT_FALSE(result_.has_value());
}

TEST_F(HostRequestStreamTest, WithoutAnswersTheStreamEnds) {
  stream_->send_error = absl::UnavailableError("gone");
  Ask(1);
  Serve([](HostRequest) -> Co<HostResponse> { co_return HostResponse(); });
  Run();
  EXPECT_TRUE(stream_->cancelled);
  ASSERT_TRUE(result_.has_value());
  EXPECT_EQ(*result_, stream_->send_error);
}

TEST_F(HostRequestStreamTest, AHandlerThatThrowsIsAnswered) {
  Ask(1);
  Serve([](HostRequest) -> Co<HostResponse> {
    throw std::runtime_error("as told");
    co_return HostResponse();
  });
  Run();
  ASSERT_EQ(stream_->answers.size(), 1u);
  EXPECT_EQ(stream_->answers[0].code(), static_cast<int>(absl::StatusCode::kInternal));
}

TEST_F(HostRequestStreamTest, GarbageEndsTheStream) {
  stream_->requests.emplace_back("\xff\xff");
  Serve([](HostRequest) -> Co<HostResponse> { co_return HostResponse(); });
  Run();
  ASSERT_TRUE(result_.has_value());
  EXPECT_TRUE(absl::IsInvalidArgument(*result_));
  EXPECT_TRUE(stream_->cancelled);
}

}  // namespace
}  // namespace magnetar::daemon
