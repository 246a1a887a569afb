#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/system_error.hpp>
#include <exception>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/common/ttrpc/connection.h"
#include "src/common/ttrpc/stream_state.h"
#include "src/common/ttrpc/wire.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::ttrpc {
namespace {

std::string Quoted(absl::string_view name) {
  return absl::StrCat("\"", absl::CHexEscape(name.substr(0, 128)), "\"");
}

absl::Status DeadlineError() { return absl::DeadlineExceededError("the call's time has run out"); }

absl::Status StatusOf(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const boost::system::system_error& e) {
    if (e.code() == asio::error::operation_aborted) {
      return absl::CancelledError("call was cancelled");
    }
    return absl::InternalError(e.what());
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

CallContext ContextOf(Request& request) {
  CallContext context;
  for (KeyValue& pair : *request.mutable_metadata()) {
    context.metadata.emplace(std::move(*pair.mutable_key()), std::move(*pair.mutable_value()));
  }
  const std::chrono::nanoseconds timeout(request.timeout_nano());
  if (timeout.count() != 0 && timeout < kMaxTimeout) {
    // A negative one is a deadline that had passed before the request was sent.
    context.deadline = std::chrono::steady_clock::now() + std::max(timeout, -kMaxTimeout);
  }
  return context;
}

class ServerConnection : public std::enable_shared_from_this<ServerConnection> {
 public:
  ServerConnection(const asio::any_io_executor& executor, UniqueFd socket,
                   std::shared_ptr<const Services> services, const Limits& limits)
      : connection_(std::make_shared<Connection>(executor, std::move(socket), limits)),
        budget_(std::make_shared<BufferBudget>(limits.max_buffered_bytes)),
        services_(std::move(services)),
        limits_(limits),
        finished_(executor),
        closing_(executor) {}

  static Co<absl::Status> Run(std::shared_ptr<ServerConnection> self, std::string received);

 private:
  // A request being served.
  struct Active {
    asio::cancellation_signal cancel;
    std::shared_ptr<StreamState> stream;      // null: unary
    const UnaryHandler* handler = nullptr;    // null: a stream
    std::optional<asio::steady_timer> alarm;  // at the call's deadline
    size_t charged = 0;                       // of the budget: its request, then its response
    bool answered = false;                    // the peer has got its Response, or it is under way
    bool late = false;                        // answered at its deadline
  };

  static Co<void> RunUnary(std::shared_ptr<ServerConnection> self, uint32_t id, CallContext context,
                           std::string payload, std::shared_ptr<Active> active);
  static Co<void> RunStream(std::shared_ptr<ServerConnection> self, uint32_t id,
                            const StreamHandler* handler, CallContext context,
                            std::shared_ptr<Active> active);

  absl::Status OnFrame(Frame frame);
  absl::Status OnRequest(const Frame& frame);
  void OnData(Frame frame);
  void StartUnary(uint32_t id, const UnaryHandler* handler, Request request, size_t bytes);
  void StartStream(uint32_t id, uint8_t flags, const StreamHandler* handler, Request request,
                   size_t bytes);
  void Spawn(uint32_t id, const std::shared_ptr<Active>& active, Co<void> run);
  void Finished(uint32_t id);
  void CloseSoon();
  void Expire(uint32_t id);
  // Gives back what the call holds of the budget, and takes `bytes` of it if they are there.
  bool Charge(Active& active, size_t bytes);
  size_t LateCalls(const UnaryHandler* handler) const;
  void Refuse(uint32_t id, const absl::Status& status);
  void RefuseStream(uint32_t id, Active& active, const absl::Status& status);
  std::vector<std::shared_ptr<Active>> Snapshot() const;

  const std::shared_ptr<Connection> connection_;
  const std::shared_ptr<BufferBudget> budget_;
  const std::shared_ptr<const Services> services_;
  const Limits limits_;
  uint32_t last_id_ = 0;
  std::map<uint32_t, std::shared_ptr<Active>> active_;
  // Of those in active_, the ones whose peers have been told that their time ran out.
  std::map<const UnaryHandler*, size_t> late_;
  size_t late_calls_ = 0;
  Event finished_;
  asio::steady_timer closing_;
};

Co<absl::Status> ServerConnection::Run(std::shared_ptr<ServerConnection> self,
                                       std::string received) {
  co_await asio::this_coro::throw_if_cancelled(false);
  auto reading = self->connection_->ReadFrames(
      [server = self.get()](Frame frame) { return server->OnFrame(std::move(frame)); },
      std::move(received));
  const absl::Status status = co_await std::move(reading);

  const absl::Status gone = absl::UnavailableError(
      absl::StrCat("connection is gone: ", status.ok() ? "closed by the peer" : status.message()));
  self->connection_->Close(gone);
  for (const auto& active : self->Snapshot()) {
    if (active->stream != nullptr) {
      active->stream->Fail(gone);
    } else {
      active->cancel.emit(asio::cancellation_type::terminal);
    }
  }
  while (!self->active_.empty()) {
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (Cancelled(cancellation)) {
      for (const auto& active : self->Snapshot()) {
        active->cancel.emit(asio::cancellation_type::terminal);
      }
    }
    if (self->active_.empty()) break;
    auto finished = self->finished_.Wait();
    co_await std::move(finished);
  }
  co_return status;
}

std::vector<std::shared_ptr<ServerConnection::Active>> ServerConnection::Snapshot() const {
  std::vector<std::shared_ptr<Active>> all;
  all.reserve(active_.size());
  for (const auto& [id, active] : active_) all.push_back(active);
  return all;
}

absl::Status ServerConnection::OnFrame(Frame frame) {
  switch (frame.header.type) {
    case FrameType::kRequest:
      return OnRequest(frame);
    case FrameType::kData:
      OnData(std::move(frame));
      return absl::OkStatus();
    case FrameType::kResponse:
      break;
  }
  return absl::InvalidArgumentError("the client sent a response");
}

absl::Status ServerConnection::OnRequest(const Frame& frame) {
  const uint32_t id = frame.header.stream_id;
  if (id % 2 == 0) {
    Refuse(id, absl::InvalidArgumentError("a client's stream ids are odd"));
    return absl::OkStatus();
  }
  if (id <= last_id_) {
    Refuse(id, absl::InvalidArgumentError("stream ids must increase"));
    return absl::OkStatus();
  }
  last_id_ = id;
  if (frame.oversized) {
    Refuse(id, absl::ResourceExhaustedError(
                   absl::StrCat("request of ", frame.header.length, " bytes is too large")));
    return absl::OkStatus();
  }
  absl::StatusOr<Request> request = DecodeRequest(frame.body);
  if (!request.ok()) {
    Refuse(id, request.status());
    return absl::OkStatus();
  }
  const UnaryHandler* unary = services_->FindUnary(request->service(), request->method());
  const StreamHandler* stream =
      unary != nullptr ? nullptr : services_->FindStream(request->service(), request->method());
  if (unary == nullptr && stream == nullptr) {
    Refuse(id, absl::UnimplementedError(absl::StrCat("no method ", Quoted(request->method()),
                                                     " of service ", Quoted(request->service()))));
    return absl::OkStatus();
  }
  if (unary != nullptr && request->timeout_nano() < 0) {
    Refuse(id, DeadlineError());
    return absl::OkStatus();
  }
  if (unary != nullptr && LateCalls(unary) >= limits_.max_streams) {
    Refuse(id, absl::ResourceExhaustedError(
                   "too many calls of this method run on after their deadlines"));
    return absl::OkStatus();
  }
  const size_t bytes = frame.body.size();
  if (active_.size() - late_calls_ >= limits_.max_streams || !budget_->Take(bytes)) {
    Refuse(id, absl::ResourceExhaustedError("too many calls in flight on this connection"));
    return absl::OkStatus();
  }
  if (unary != nullptr) {
    StartUnary(id, unary, *std::move(request), bytes);
  } else {
    StartStream(id, frame.header.flags, stream, *std::move(request), bytes);
  }
  return absl::OkStatus();
}

void ServerConnection::StartUnary(uint32_t id, const UnaryHandler* handler, Request request,
                                  size_t bytes) {
  auto active = std::make_shared<Active>();
  active->handler = handler;
  active->charged = bytes;
  CallContext context = ContextOf(request);
  if (context.deadline.has_value()) {
    active->alarm.emplace(connection_->executor(), *context.deadline);
    active->alarm->async_wait(
        [weak = weak_from_this(), id](const boost::system::error_code& error) {
          const auto self = weak.lock();
          if (!error && self != nullptr) self->Expire(id);
        });
  }
  Spawn(id, active,
        RunUnary(shared_from_this(), id, std::move(context), std::move(*request.mutable_payload()),
                 active));
}

void ServerConnection::StartStream(uint32_t id, uint8_t flags, const StreamHandler* handler,
                                   Request request, size_t bytes) {
  auto active = std::make_shared<Active>();
  active->charged = bytes;
  active->stream = std::make_shared<StreamState>(connection_, budget_, id, limits_);
  // The single message of a stream that only the server writes to.
  if (!request.payload().empty() && !active->stream->Deliver(request.payload())) {
    active->stream->FailNow(absl::ResourceExhaustedError("too many unread messages"));
  }
  if ((flags & kRemoteClosed) != 0) active->stream->EndOfPeer();
  Spawn(id, active, RunStream(shared_from_this(), id, handler, ContextOf(request), active));
}

void ServerConnection::Spawn(uint32_t id, const std::shared_ptr<Active>& active, Co<void> run) {
  closing_.cancel();
  active_.emplace(id, active);
  asio::co_spawn(
      connection_->executor(), std::move(run),
      asio::bind_cancellation_slot(active->cancel.slot(),
                                   [self = shared_from_this(), id,
                                    active](const std::exception_ptr&) { self->Finished(id); }));
}

Co<void> ServerConnection::RunUnary(std::shared_ptr<ServerConnection> self, uint32_t id,
                                    CallContext context, std::string payload,
                                    std::shared_ptr<Active> active) {
  absl::StatusOr<std::string> result = absl::UnknownError("");
  try {
    auto call = (*active->handler)(std::move(context), std::move(payload));
    result = co_await std::move(call);
  } catch (...) {
    result = StatusOf(std::current_exception());
  }
  active->alarm.reset();
  self->Charge(*active, 0);
  if (active->answered || self->connection_->closed()) co_return;
  active->answered = true;
  std::string body = EncodeResponse(result, self->limits_.max_message_bytes);
  result = std::string();
  if (!self->Charge(*active, body.size())) {
    result = absl::ResourceExhaustedError("too many unread responses on this connection");
    body = EncodeResponse(result, self->limits_.max_message_bytes);
  }
  auto frame = self->connection_->Queue(id, FrameType::kResponse, 0, std::move(body));
  auto written = self->connection_->Written(std::move(frame));
  const absl::Status status = co_await std::move(written);
  // Failing means that the connection is gone, which its reader notices too.
  status.IgnoreError();
}

Co<void> ServerConnection::RunStream(std::shared_ptr<ServerConnection> self, uint32_t id,
                                     const StreamHandler* handler, CallContext context,
                                     std::shared_ptr<Active> active) {
  absl::Status result;
  try {
    auto call = (*handler)(std::move(context), active->stream);
    result = co_await std::move(call);
  } catch (...) {
    result = StatusOf(std::current_exception());
  }
  const bool answer = !active->answered && !active->stream->send_closed();
  active->stream->FailNow(absl::CancelledError("the stream's handler has returned"));
  if (!answer || self->connection_->closed()) co_return;
  std::shared_ptr<Outgoing> frame;
  if (result.ok()) {
    frame = self->connection_->Queue(id, FrameType::kData, kRemoteClosed | kNoData, std::string());
  } else {
    frame = self->connection_->Queue(id, FrameType::kResponse, 0,
                                     EncodeResponse(result, self->limits_.max_message_bytes));
  }
  auto written = self->connection_->Written(std::move(frame));
  const absl::Status status = co_await std::move(written);
  status.IgnoreError();
}

void ServerConnection::OnData(Frame frame) {
  const uint32_t id = frame.header.stream_id;
  const auto it = active_.find(id);
  if (it == active_.end()) {
    // Late frames of a stream that ended are normal; the peer could not know.
    if (id > last_id_ || id % 2 == 0) {
      Refuse(id, absl::InvalidArgumentError("no such stream"));
    }
    return;
  }
  const std::shared_ptr<Active> active = it->second;
  if (active->stream == nullptr) return;
  if (frame.oversized) {
    RefuseStream(id, *active,
                 absl::ResourceExhaustedError(
                     absl::StrCat("message of ", frame.header.length, " bytes is too large")));
    return;
  }
  if ((frame.header.flags & kNoData) == 0 && !active->stream->Deliver(std::move(frame.body))) {
    RefuseStream(id, *active, absl::ResourceExhaustedError("too many unread messages"));
    return;
  }
  if ((frame.header.flags & kRemoteClosed) != 0) active->stream->EndOfPeer();
}

void ServerConnection::Finished(uint32_t id) {
  const auto it = active_.find(id);
  if (it == active_.end()) return;
  const std::shared_ptr<Active> active = it->second;
  active_.erase(it);
  active->alarm.reset();
  Charge(*active, 0);
  if (active->late) {
    const auto late = late_.find(active->handler);
    if (--late->second == 0) late_.erase(late);
    --late_calls_;
  }
  if (active->stream != nullptr && active_.empty()) CloseSoon();
  finished_.NotifyAll();
}

// Not at once: frames that cross the stream's end are still to come.
void ServerConnection::CloseSoon() {
  if (limits_.close_after_streams.count() == 0) return;
  closing_.expires_after(
      std::chrono::duration_cast<asio::steady_timer::duration>(limits_.close_after_streams));
  closing_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    const auto self = weak.lock();
    // One that began just now cancelled too late.
    if (error || self == nullptr || !self->active_.empty()) return;
    self->connection_->Close(absl::UnavailableError("its streams are over"));
  });
}

// The peer has stopped waiting; the handler may be one that must not be interrupted.
void ServerConnection::Expire(uint32_t id) {
  const auto it = active_.find(id);
  if (it == active_.end() || it->second->answered) return;
  const std::shared_ptr<Active> active = it->second;
  active->answered = true;
  active->late = true;
  ++late_[active->handler];
  ++late_calls_;
  Refuse(id, DeadlineError());
  active->cancel.emit(asio::cancellation_type::terminal);
}

bool ServerConnection::Charge(Active& active, size_t bytes) {
  budget_->Give(std::exchange(active.charged, 0));
  if (!budget_->Take(bytes)) return false;
  active.charged = bytes;
  return true;
}

size_t ServerConnection::LateCalls(const UnaryHandler* handler) const {
  const auto it = late_.find(handler);
  return it == late_.end() ? 0 : it->second;
}

void ServerConnection::Refuse(uint32_t id, const absl::Status& status) {
  connection_->QueueRefusal(id, EncodeResponse(status, limits_.max_message_bytes));
}

void ServerConnection::RefuseStream(uint32_t id, Active& active, const absl::Status& status) {
  if (std::exchange(active.answered, true)) return;
  if (!active.stream->send_closed()) Refuse(id, status);
  active.stream->FailNow(status);
}

}  // namespace

Co<absl::Status> ServeConnection(UniqueFd socket, std::shared_ptr<const Services> services,
                                 Limits limits, std::string received) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  auto server =
      std::make_shared<ServerConnection>(executor, std::move(socket), std::move(services), limits);
  // A coroutine of its own: it must go on after a cancellation, to wait for its handlers.
  auto run = ServerConnection::Run(std::move(server), std::move(received));
  auto running = asio::co_spawn(executor, std::move(run), asio::use_awaitable);
  co_return co_await std::move(running);
}

}  // namespace magnetar::ttrpc
