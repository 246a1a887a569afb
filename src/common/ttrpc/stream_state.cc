#include "src/common/ttrpc/stream_state.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace magnetar::ttrpc {
namespace {
// What an empty message costs, so that a flood of them is bounded too.
constexpr size_t kMessageOverhead = 64;
}  // namespace

StreamState::StreamState(std::shared_ptr<Connection> connection,
                         std::shared_ptr<BufferBudget> budget, uint32_t id, const Limits& limits)
    : connection_(std::move(connection)),
      budget_(std::move(budget)),
      id_(id),
      limits_(limits),
      readable_(connection_->executor()) {}

StreamState::~StreamState() { DropBacklog(); }

Co<absl::StatusOr<std::optional<std::string>>> StreamState::Receive() {
  const auto self = shared_from_this();
  while (true) {
    if (!backlog_.empty()) {
      std::string message = std::move(backlog_.front());
      backlog_.pop_front();
      const size_t cost = message.size() + kMessageOverhead;
      backlog_bytes_ -= cost;
      budget_->Give(cost);
      co_return message;
    }
    if (end_.has_value()) {
      if (!end_->ok()) co_return *end_;
      co_return std::nullopt;
    }
    auto readable = readable_.Wait();
    co_await std::move(readable);
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (Cancelled(cancellation)) co_return absl::CancelledError("receive was cancelled");
  }
}

Co<absl::Status> StreamState::Send(std::string message) {
  auto send = SendFrame(0, std::move(message));
  co_return co_await std::move(send);
}

Co<absl::Status> StreamState::CloseSend() {
  auto send = SendFrame(kRemoteClosed | kNoData, std::string());
  co_return co_await std::move(send);
}

Co<absl::Status> StreamState::SendFrame(uint8_t flags, std::string body) {
  const auto self = shared_from_this();
  if (!broken_.ok()) co_return broken_;
  if (send_closed_) co_return absl::FailedPreconditionError("this side of the stream is closed");
  if (body.size() > limits_.max_message_bytes) {
    co_return absl::ResourceExhaustedError(
        absl::StrCat("message of ", body.size(), " bytes is too large to send"));
  }
  if (sending_ != nullptr) co_return absl::FailedPreconditionError("another send is pending");
  if ((flags & kRemoteClosed) != 0) send_closed_ = true;
  struct Guard {
    StreamState& stream;
    ~Guard() { stream.sending_ = nullptr; }
  } guard{*this};
  sending_ = connection_->Queue(id_, FrameType::kData, flags, std::move(body));
  auto written = connection_->Written(sending_);
  absl::Status status = co_await std::move(written);
  sending_ = nullptr;
  CheckFinished();
  co_return status;
}

void StreamState::Cancel() { FailNow(absl::CancelledError("stream was cancelled")); }

bool StreamState::Deliver(std::string message) {
  if (end_.has_value()) return true;  // late: dropped
  const size_t cost = message.size() + kMessageOverhead;
  if (backlog_bytes_ + cost > limits_.max_stream_backlog_bytes || !budget_->Take(cost))
    return false;
  backlog_bytes_ += cost;
  backlog_.push_back(std::move(message));
  readable_.NotifyAll();
  return true;
}

void StreamState::EndOfPeer() {
  if (end_.has_value()) return;
  end_ = absl::OkStatus();
  readable_.NotifyAll();
  CheckFinished();
}

void StreamState::Fail(absl::Status status) {
  if (broken_.ok()) {
    broken_ = status;
    if (sending_ != nullptr) connection_->Withdraw(*sending_, status);
  }
  if (!end_.has_value()) {
    end_ = std::move(status);
    readable_.NotifyAll();
  }
  CheckFinished();
}

void StreamState::FailNow(absl::Status status) {
  DropBacklog();
  end_ = status;
  readable_.NotifyAll();
  Fail(std::move(status));
}

void StreamState::CheckFinished() {
  const bool both_closed = send_closed_ && sending_ == nullptr && end_.has_value();
  if (broken_.ok() && !both_closed) return;
  if (const auto finished = std::exchange(finished_, nullptr)) finished();
}

void StreamState::DropBacklog() {
  budget_->Give(backlog_bytes_);
  backlog_bytes_ = 0;
  backlog_.clear();
}

}  // namespace magnetar::ttrpc
