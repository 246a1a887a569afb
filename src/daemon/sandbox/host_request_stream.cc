#include "src/daemon/sandbox/host_request_stream.h"

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <deque>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/event.h"

namespace magnetar::daemon {
namespace {

struct Serving {
  Serving(const asio::any_io_executor& e, std::shared_ptr<ttrpc::Stream> s, HostRequestHandler h)
      : executor(e), stream(std::move(s)), handler(std::move(h)), changed(e) {}

  asio::any_io_executor executor;
  std::shared_ptr<ttrpc::Stream> stream;
  HostRequestHandler handler;
  Event changed;
  struct Answer {
    agent::v1::HostResponse response;
    size_t* in_flight = nullptr;  // what it counts in until it is sent
  };
  std::deque<Answer> answers;
  size_t requests = 0;
  size_t events = 0;
  bool ended = false;
  absl::Status send_error;
};

Co<absl::Status> SendAnswer(std::shared_ptr<Serving> self, agent::v1::HostResponse answer) {
  auto send = self->stream->Send(answer.SerializeAsString());
  absl::Status status = co_await std::move(send);
  if (!absl::IsResourceExhausted(status)) co_return status;
  // Nothing of it has left. Whoever waits for this answer gets to know why it does not come.
  agent::v1::HostResponse refusal;
  refusal.set_id(answer.id());
  refusal.set_code(static_cast<int32_t>(status.code()));
  refusal.set_message(std::string(status.message()));
  auto send_refusal = self->stream->Send(refusal.SerializeAsString());
  status = co_await std::move(send_refusal);
  co_return status;
}

Co<void> SendAnswers(std::shared_ptr<Serving> self) {
  while (!self->ended) {
    if (self->answers.empty()) {
      auto wait = self->changed.Wait();
      co_await std::move(wait);
      continue;
    }
    Serving::Answer answer = std::move(self->answers.front());
    self->answers.pop_front();
    auto send = SendAnswer(self, std::move(answer.response));
    const absl::Status status = co_await std::move(send);
    --*answer.in_flight;
    self->changed.NotifyAll();
    if (status.ok()) continue;
    // Without answers the requests are of no use: the guest shall see the stream's end.
    self->send_error = status;
    self->ended = true;
    self->stream->Cancel();
  }
}

// What is large in memory, or is made so by a few bytes on the wire, for as long as it waits its
// turn.
bool IsExcessive(const agent::v1::HostRequest& request) {
  return request.prepare().rootfs_mount_types_size() > kMaxRootfsMounts ||
         request.event().ByteSizeLong() > kMaxEventBytes;
}

void Begin(const std::shared_ptr<Serving>& self, agent::v1::HostRequest request) {
  const uint64_t id = request.id();
  size_t* const in_flight = request.has_event() ? &self->events : &self->requests;
  ++*in_flight;
  auto done = [self, id, in_flight](const std::exception_ptr& error,
                                    agent::v1::HostResponse response) {
    if (error != nullptr) {
      response.Clear();
      response.set_code(static_cast<int32_t>(absl::StatusCode::kInternal));
      response.set_message("exception");
    }
    response.set_id(id);
    self->answers.push_back({std::move(response), in_flight});
    self->changed.NotifyAll();
  };
  asio::co_spawn(self->executor, self->handler(std::move(request)),
                 asio::bind_executor(self->executor, std::move(done)));
}

}  // namespace

Co<absl::Status> ServeHostRequestStream(std::shared_ptr<ttrpc::Stream> stream,
                                        HostRequestHandler handler) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  auto self = std::make_shared<Serving>(executor, std::move(stream), std::move(handler));
  asio::co_spawn(executor, SendAnswers(self), asio::detached);
  absl::Status result;
  while (!self->ended) {
    if (self->requests >= kMaxHostRequests || self->events >= kMaxHostEvents) {
      auto wait = self->changed.Wait();
      co_await std::move(wait);
      continue;
    }
    auto receive = self->stream->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    if (!message.ok()) {
      result = message.status();
      break;
    }
    if (!message->has_value()) break;
    agent::v1::HostRequest request;
    if (!request.ParseFromString(**message)) {
      result = absl::InvalidArgumentError("the guest sent a request that does not parse");
      break;
    }
    if (IsExcessive(request)) {
      result = absl::InvalidArgumentError(
          absl::StrCat("the guest sent a request with more than ", kMaxRootfsMounts, " mounts"));
      break;
    }
    Begin(self, std::move(request));
  }
  self->ended = true;
  self->changed.NotifyAll();
  self->stream->Cancel();
  co_return self->send_error.ok() ? result : self->send_error;
}

}  // namespace magnetar::daemon
