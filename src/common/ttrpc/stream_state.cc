#include "src/common/ttrpc/stream_state.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace magnetar::ttrpc {
namespace {
// What an empty message costs, so that a flood of them is bounded too.
constexpr size_t kMessageOverhead = 64;
}  // namespace

Co<Stream::Sent> Stream::SendAll(std::vector<std::string> messages) {
  Sent result;
  for (std::string& message : messages) {
    auto send = Send(std::move(message));
    result.status = co_await std::move(send);
    if (!result.status.ok()) break;
    ++result.sent;
  }
  co_return result;
}

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
  std::vector<std::string> messages;
  messages.push_back(std::move(message));
  auto send = SendFrames(0, std::move(messages));
  const Sent sent = co_await std::move(send);
  co_return sent.status;
}

Co<Stream::Sent> StreamState::SendAll(std::vector<std::string> messages) {
  auto send = SendFrames(0, std::move(messages));
  co_return co_await std::move(send);
}

Co<absl::Status> StreamState::CloseSend() {
  auto send = SendFrames(kRemoteClosed | kNoData, std::vector<std::string>(1));
  const Sent sent = co_await std::move(send);
  co_return sent.status;
}

Co<Stream::Sent> StreamState::SendFrames(uint8_t flags, std::vector<std::string> bodies) {
  const auto self = shared_from_this();
  if (!broken_.ok()) co_return Sent{broken_};
  if (send_closed_) {
    co_return Sent{absl::FailedPreconditionError("this side of the stream is closed")};
  }
  for (const std::string& body : bodies) {
    if (body.size() <= limits_.max_message_bytes) continue;
    co_return Sent{absl::ResourceExhaustedError(
        absl::StrCat("message of ", body.size(), " bytes is too large to send"))};
  }
  if (!sending_.empty()) co_return Sent{absl::FailedPreconditionError("another send is pending")};
  if ((flags & kRemoteClosed) != 0) send_closed_ = true;
  struct Guard {
    StreamState& stream;
    ~Guard() { stream.sending_.clear(); }
  } guard{*this};
  sending_ = connection_->QueueData(id_, flags, std::move(bodies));
  Sent result;
  auto written = connection_->Written(sending_);
  result.status = co_await std::move(written);
  for (const auto& frame : sending_) result.sent += frame->written() ? 1 : 0;
  sending_.clear();
  CheckFinished();
  co_return result;
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
    for (const auto& frame : sending_) connection_->Withdraw(*frame, status);
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
  const bool both_closed = send_closed_ && sending_.empty() && end_.has_value();
  if (broken_.ok() && !both_closed) return;
  if (const auto finished = std::exchange(finished_, nullptr)) finished();
}

void StreamState::DropBacklog() {
  budget_->Give(backlog_bytes_);
  backlog_bytes_ = 0;
  backlog_.clear();
}

}  // namespace magnetar::ttrpc
