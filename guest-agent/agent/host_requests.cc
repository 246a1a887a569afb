#include "guest-agent/agent/host_requests.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/util/log.h"

namespace magnetar::guest {

using Clock = std::chrono::steady_clock;

// A request that has not been answered.
struct HostRequests::Waiting {
  explicit Waiting(const asio::any_io_executor& executor) : answered(executor) {}
  agent::v1::HostRequest request;
  Event answered;
  agent::v1::HostResponse response;
  // Of a release.
  bool retry = true;
  std::chrono::milliseconds pause{0};
};

struct HostRequests::Connection {
  explicit Connection(std::shared_ptr<ttrpc::Stream> s) : stream(std::move(s)) {}
  std::shared_ptr<ttrpc::Stream> stream;
  // Requests up to this id have been sent on this connection.
  uint64_t sent = 0;
  bool over = false;
  bool receiving = true;
  absl::Status reason;
};

namespace {

constexpr int kLastCode = 16;

absl::Status ToStatus(const agent::v1::HostResponse& response) {
  const int code = response.code() < 0 || response.code() > kLastCode
                       ? static_cast<int>(absl::StatusCode::kUnknown)
                       : response.code();
  return absl::Status(static_cast<absl::StatusCode>(code), response.message());
}

}  // namespace

HostRequests::HostRequests(const asio::any_io_executor& executor, HostRequestTimes times)
    : executor_(executor), times_(times), changed_(executor) {}

std::shared_ptr<HostRequests::Waiting> HostRequests::Enqueue(agent::v1::HostRequest request) {
  auto waiting = std::make_shared<Waiting>(executor_);
  waiting->request = std::move(request);
  Enqueue(waiting);
  return waiting;
}

void HostRequests::Enqueue(const std::shared_ptr<Waiting>& waiting) {
  waiting->request.set_id(next_id_++);
  waiting_[waiting->request.id()] = waiting;
  changed_.Notify();
}

void HostRequests::Retry(const std::shared_ptr<Waiting>& release) {
  if (refused_.erase(release->request.id()) > 0) Enqueue(release);
}

Co<void> HostRequests::RetryLater(HostRequests* self, std::shared_ptr<Waiting> release) {
  release->pause = std::clamp(release->pause * 2, self->times_.retry, self->times_.max_retry);
  const uint64_t id = release->request.id();
  const auto deadline = Clock::now() + release->pause;
  // It may have been sent again meanwhile, to another daemon.
  while (self->refused_.contains(id) && Clock::now() < deadline) {
    co_await self->changed_.WaitUntil(deadline);
  }
  if (self->refused_.contains(id)) self->Retry(release);
}

void HostRequests::SettleReleases(const std::string& container_id) {
  const auto refused = refused_;
  for (const auto& [id, release] : refused) {
    if (release->request.release().container_id() == container_id) Retry(release);
  }
  for (const auto& [id, waiting] : waiting_) {
    if (waiting->request.release().container_id() == container_id) waiting->retry = false;
  }
}

Co<absl::StatusOr<agent::v1::PreparedContainer>> HostRequests::Prepare(
    std::string container_id, std::vector<std::string> rootfs_mount_types) {
  const auto connect_deadline = Clock::now() + times_.connect;
  while (connection_ == nullptr && Clock::now() < connect_deadline) {
    co_await changed_.WaitUntil(connect_deadline);
  }
  if (connection_ == nullptr) {
    co_return absl::UnavailableError("the sandbox's daemon is not connected");
  }
  SettleReleases(container_id);
  agent::v1::HostRequest request;
  request.mutable_prepare()->set_container_id(container_id);
  for (std::string& type : rootfs_mount_types) {
    request.mutable_prepare()->add_rootfs_mount_types(std::move(type));
  }
  const std::shared_ptr<Waiting> waiting = Enqueue(std::move(request));
  const bool answered = co_await waiting->answered.WaitFor(times_.prepare);
  if (!answered) {
    waiting_.erase(waiting->request.id());
    co_return absl::DeadlineExceededError(
        absl::StrCat("the daemon did not prepare container ", container_id, " in time"));
  }
  if (waiting->response.code() != 0) {
    co_return ToStatus(waiting->response);
  }
  if (!waiting->response.has_prepared()) {
    co_return absl::InternalError("the daemon's answer holds no prepared container");
  }
  co_return std::move(*waiting->response.mutable_prepared());
}

Co<void> HostRequests::Release(std::string container_id) {
  agent::v1::HostRequest request;
  request.mutable_release()->set_container_id(container_id);
  const std::shared_ptr<Waiting> waiting = Enqueue(std::move(request));
  const auto deadline = Clock::now() + times_.release;
  while (connection_ != nullptr && !waiting->answered.IsSet() && Clock::now() < deadline) {
    co_await changed_.WaitUntil(deadline);
  }
  if (!waiting->answered.IsSet()) {
    Log(LogLevel::kWarn, "release of container kept for the next daemon container=", container_id);
  } else if (waiting->response.code() != 0) {
    Log(LogLevel::kError,
        "release of container failed and will be asked for again container=", container_id,
        " error=", waiting->response.message());
  }
}

void HostRequests::Publish(agent::v1::GuestEvent event) {
  if (events_.size() >= kMaxEvents) {
    waiting_.erase(*events_.begin());
    events_.erase(events_.begin());
  }
  agent::v1::HostRequest request;
  *request.mutable_event() = std::move(event);
  events_.insert(Enqueue(std::move(request))->request.id());
}

absl::Status HostRequests::HandleAnswer(const std::string& message) {
  agent::v1::HostResponse response;
  if (!response.ParseFromString(message)) {
    return absl::InvalidArgumentError("a host's answer does not parse");
  }
  const auto it = waiting_.find(response.id());
  // An answer to a request that is given up; the daemon undoes it when it is released.
  if (it == waiting_.end()) return absl::OkStatus();
  const std::shared_ptr<Waiting> waiting = it->second;
  waiting_.erase(it);
  events_.erase(response.id());
  waiting->response = std::move(response);
  if (waiting->request.has_release() && waiting->response.code() != 0 && waiting->retry) {
    refused_[waiting->request.id()] = waiting;
    asio::co_spawn(executor_, RetryLater(this, waiting), asio::detached);
  }
  waiting->answered.Set();
  changed_.Notify();
  return absl::OkStatus();
}

Co<void> HostRequests::ReceiveAnswers(HostRequests* self, std::shared_ptr<Connection> connection) {
  while (!connection->over) {
    auto receive = connection->stream->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    if (connection->over) break;
    if (!message.ok() || !message->has_value()) {
      connection->reason = message.status();
      break;
    }
    connection->reason = self->HandleAnswer(**message);
    if (!connection->reason.ok()) break;
  }
  connection->over = true;
  connection->receiving = false;
  self->changed_.Notify();
}

Co<absl::Status> HostRequests::Serve(std::shared_ptr<ttrpc::Stream> stream) {
  auto connection = std::make_shared<Connection>(std::move(stream));
  if (connection_ != nullptr) {
    connection_->over = true;
    connection_->reason = absl::CancelledError("another daemon has connected");
    connection_->stream->Cancel();
  }
  connection_ = connection;
  // What the last daemon could not do, this one may.
  const auto refused = refused_;
  for (const auto& [id, release] : refused) Retry(release);
  changed_.Notify();
  asio::co_spawn(executor_, ReceiveAnswers(this, connection), asio::detached);
  absl::Status status;
  while (status.ok() && !connection->over) {
    const auto waiting = waiting_.upper_bound(connection->sent);
    if (waiting == waiting_.end()) {
      co_await changed_.Wait();
      continue;
    }
    connection->sent = waiting->first;
    auto send = connection->stream->Send(waiting->second->request.SerializeAsString());
    status = co_await std::move(send);
  }
  connection->over = true;
  if (status.ok()) status = connection->reason;
  connection->stream->Cancel();
  while (connection->receiving) co_await changed_.Wait();
  if (connection_ == connection) connection_ = nullptr;
  // Whoever waits for an answer looks again whether a daemon is there.
  changed_.Notify();
  co_return status;
}

}  // namespace magnetar::guest
