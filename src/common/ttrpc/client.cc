#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/dispatch.hpp>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/common/ttrpc/connection.h"
#include "src/common/ttrpc/stream_state.h"
#include "src/common/ttrpc/wire.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::ttrpc {
namespace {

constexpr uint32_t kLastId = 0xffffffff;

struct PendingCall {
  explicit PendingCall(const asio::any_io_executor& executor) : done(executor) {}
  Event done;
  std::optional<absl::StatusOr<std::string>> result;
};

// What lives as long as the connection or a call; ClientImpl only owns it.
class Core : public std::enable_shared_from_this<Core> {
 public:
  Core(const asio::any_io_executor& executor, UniqueFd socket, const Limits& limits)
      : connection_(std::make_shared<Connection>(executor, std::move(socket), limits)),
        budget_(std::make_shared<BufferBudget>(limits.max_buffered_bytes)),
        limits_(limits),
        gone_(executor) {}

  static Co<void> Run(std::shared_ptr<Core> self);
  static Co<absl::StatusOr<std::string>> Call(
      std::shared_ptr<Core> self, std::string service, std::string method, std::string payload,
      std::chrono::nanoseconds timeout, std::vector<std::pair<std::string, std::string>> metadata);
  static Co<absl::StatusOr<std::shared_ptr<Stream>>> Open(std::shared_ptr<Core> self,
                                                          std::string service, std::string method);
  static Co<void> Gone(std::shared_ptr<Core> self);
  void Close(const absl::Status& reason);
  const asio::any_io_executor& executor() const { return connection_->executor(); }

 private:
  absl::StatusOr<uint32_t> NextId();
  absl::Status OnFrame(Frame frame);
  void OnResponse(const Frame& frame);
  void OnData(Frame frame);

  const std::shared_ptr<Connection> connection_;
  const std::shared_ptr<BufferBudget> budget_;
  const Limits limits_;
  uint32_t next_id_ = 1;
  std::map<uint32_t, std::shared_ptr<PendingCall>> calls_;
  std::map<uint32_t, std::shared_ptr<StreamState>> streams_;
  Event gone_;
};

Co<void> Core::Run(std::shared_ptr<Core> self) {
  auto reading = self->connection_->ReadFrames(
      [core = self.get()](Frame frame) { return core->OnFrame(std::move(frame)); });
  const absl::Status status = co_await std::move(reading);
  self->Close(absl::UnavailableError(
      absl::StrCat("connection is gone: ", status.ok() ? "closed by the peer" : status.message())));
}

void Core::Close(const absl::Status& reason) {
  connection_->Close(reason);
  const auto calls = std::exchange(calls_, {});
  for (const auto& [id, call] : calls) {
    call->result = connection_->reason();
    call->done.NotifyAll();
  }
  const auto streams = std::exchange(streams_, {});
  for (const auto& [id, stream] : streams) stream->Fail(connection_->reason());
  gone_.NotifyAll();
}

Co<void> Core::Gone(std::shared_ptr<Core> self) {
  while (!self->connection_->closed()) {
    auto gone = self->gone_.Wait();
    co_await std::move(gone);
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (Cancelled(cancellation)) co_return;
  }
}

absl::StatusOr<uint32_t> Core::NextId() {
  if (connection_->closed()) return connection_->reason();
  if (calls_.size() + streams_.size() >= limits_.max_streams) {
    return absl::ResourceExhaustedError("too many calls in flight on this connection");
  }
  if (next_id_ == kLastId) {
    return absl::UnavailableError("the connection has used up its stream ids");
  }
  return std::exchange(next_id_, next_id_ + 2);
}

Co<absl::StatusOr<std::string>> Core::Call(
    std::shared_ptr<Core> self, std::string service, std::string method, std::string payload,
    std::chrono::nanoseconds timeout, std::vector<std::pair<std::string, std::string>> metadata) {
  Request request;
  request.set_service(service);
  request.set_method(method);
  request.set_payload(std::move(payload));
  const bool limited = timeout.count() > 0 && timeout < kMaxTimeout;
  if (limited) request.set_timeout_nano(timeout.count());
  for (auto& [key, value] : metadata) {
    KeyValue* pair = request.add_metadata();
    pair->set_key(std::move(key));
    pair->set_value(std::move(value));
  }
  std::string body = request.SerializeAsString();
  request.Clear();
  if (body.size() > self->limits_.max_message_bytes) {
    co_return absl::ResourceExhaustedError(
        absl::StrCat("request of ", body.size(), " bytes is too large to send"));
  }
  const absl::StatusOr<uint32_t> id = self->NextId();
  if (!id.ok()) co_return id.status();

  const auto deadline = std::chrono::steady_clock::now() + timeout;
  const auto call = std::make_shared<PendingCall>(self->executor());
  self->calls_.emplace(*id, call);
  const auto frame = self->connection_->Queue(*id, FrameType::kRequest, 0, std::move(body));
  struct Guard {
    Core& core;
    uint32_t id;
    Outgoing& frame;
    ~Guard() {
      core.calls_.erase(id);
      core.connection_->Withdraw(frame, absl::CancelledError("call was given up"));
    }
  } guard{*self, *id, *frame};

  while (!call->result.has_value()) {
    if (limited && std::chrono::steady_clock::now() >= deadline) {
      co_return absl::DeadlineExceededError(
          absl::StrCat(service, "/", method, ": no answer within ",
                       absl::FormatDuration(absl::FromChrono(timeout))));
    }
    if (limited) {
      auto done = call->done.WaitUntil(deadline);
      co_await std::move(done);
    } else {
      auto done = call->done.Wait();
      co_await std::move(done);
    }
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (Cancelled(cancellation)) co_return absl::CancelledError(absl::StrCat(service, "/", method));
  }
  co_return std::move(*call->result);
}

Co<absl::StatusOr<std::shared_ptr<Stream>>> Core::Open(std::shared_ptr<Core> self,
                                                       std::string service, std::string method) {
  Request request;
  request.set_service(std::move(service));
  request.set_method(std::move(method));
  const absl::StatusOr<uint32_t> id = self->NextId();
  if (!id.ok()) co_return id.status();

  auto state = std::make_shared<StreamState>(self->connection_, self->budget_, *id, self->limits_);
  state->OnFinished([core = self->weak_from_this(), id = *id] {
    if (const auto locked = core.lock()) locked->streams_.erase(id);
  });
  self->streams_.emplace(*id, state);
  StreamState* const raw = state.get();
  // Whoever drops the last pointer gives the stream up.
  std::shared_ptr<Stream> stream(raw, [state = std::move(state)](Stream*) { state->Cancel(); });

  auto frame =
      self->connection_->Queue(*id, FrameType::kRequest, kRemoteOpen, request.SerializeAsString());
  auto written = self->connection_->Written(std::move(frame));
  const absl::Status status = co_await std::move(written);
  if (!status.ok()) co_return status;
  co_return stream;
}

absl::Status Core::OnFrame(Frame frame) {
  switch (frame.header.type) {
    case FrameType::kResponse:
      OnResponse(frame);
      return absl::OkStatus();
    case FrameType::kData:
      OnData(std::move(frame));
      return absl::OkStatus();
    case FrameType::kRequest:
      break;
  }
  return absl::InvalidArgumentError("the server sent a request");
}

void Core::OnResponse(const Frame& frame) {
  absl::StatusOr<std::string> result = absl::ResourceExhaustedError(
      absl::StrCat("response of ", frame.header.length, " bytes is too large"));
  if (!frame.oversized) result = DecodeResponse(frame.body);

  if (const auto it = calls_.find(frame.header.stream_id); it != calls_.end()) {
    it->second->result = std::move(result);
    it->second->done.NotifyAll();
    calls_.erase(it);
    return;
  }
  const auto it = streams_.find(frame.header.stream_id);
  if (it == streams_.end()) return;  // given up meanwhile
  const std::shared_ptr<StreamState> stream = it->second;
  if (!result.ok()) {
    stream->Fail(result.status());
    return;
  }
  if (!result->empty() && !stream->Deliver(*std::move(result))) {
    stream->FailNow(absl::ResourceExhaustedError("too many unread messages"));
    return;
  }
  stream->EndOfPeer();
  stream->Fail(absl::FailedPreconditionError("the peer has ended the stream"));
}

void Core::OnData(Frame frame) {
  const auto it = streams_.find(frame.header.stream_id);
  if (it == streams_.end()) return;  // given up meanwhile
  const std::shared_ptr<StreamState> stream = it->second;
  if (frame.oversized) {
    stream->FailNow(absl::ResourceExhaustedError(
        absl::StrCat("message of ", frame.header.length, " bytes is too large")));
    return;
  }
  if ((frame.header.flags & kNoData) == 0 && !stream->Deliver(std::move(frame.body))) {
    stream->FailNow(absl::ResourceExhaustedError("too many unread messages"));
    return;
  }
  if ((frame.header.flags & kRemoteClosed) != 0) stream->EndOfPeer();
}

class ClientImpl : public Client {
 public:
  explicit ClientImpl(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  ~ClientImpl() override { Close(); }

  Co<absl::StatusOr<std::string>> CallRaw(
      std::string service, std::string method, std::string payload,
      std::chrono::nanoseconds timeout,
      std::vector<std::pair<std::string, std::string>> metadata) override {
    return Core::Call(core_, std::move(service), std::move(method), std::move(payload), timeout,
                      std::move(metadata));
  }

  Co<absl::StatusOr<std::shared_ptr<Stream>>> OpenStream(std::string service,
                                                         std::string method) override {
    return Core::Open(core_, std::move(service), std::move(method));
  }

  Co<void> Closed() override { return Core::Gone(core_); }

  void Close() override {
    // The last owner may be on another thread.
    asio::dispatch(core_->executor(), [core = core_] {
      core->Close(absl::UnavailableError("connection was closed on this side"));
    });
  }

 private:
  const std::shared_ptr<Core> core_;
};

}  // namespace

std::shared_ptr<Client> Client::Create(const asio::any_io_executor& executor, UniqueFd socket,
                                       Limits limits) {
  auto core = std::make_shared<Core>(executor, std::move(socket), limits);
  asio::co_spawn(executor, Core::Run(core), asio::detached);
  return std::make_shared<ClientImpl>(std::move(core));
}

}  // namespace magnetar::ttrpc
