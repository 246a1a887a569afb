#include "src/supervisor/outputs.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/output.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"
#include "magnetar/streaming/frames.h"
#include "magnetar/streaming/output_stream.h"
#include "magnetar/streaming/stream_id.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/attempt.h"

namespace magnetar::supervisor {
namespace {

using streaming::OutputStream;

constexpr std::chrono::seconds kOutputDeadline{10};
constexpr std::chrono::milliseconds kRetryPause{500};
constexpr ttrpc::Limits kLimits = {.max_received_bytes = 64 << 10,
                                   .max_streams = 1,
                                   .max_stream_backlog_bytes = 256 << 10,
                                   .max_buffered_bytes = 1 << 20,
                                   .close_after_streams = streaming::kLinger};

// Whether the guest may think otherwise later.
bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status);
}

Co<absl::Status> ReadClaimed(AsyncFd& guest) {
  while (true) {
    char claimed = 0;
    const ssize_t n = ::recv(guest.native_handle(), &claimed, 1, 0);
    if (n == 1 && claimed == kOutputClaimed) co_return absl::OkStatus();
    if (n == 1) co_return absl::InternalError("the guest's answer is none");
    if (n == 0) co_return absl::NotFoundError("the guest has no such stream");
    if (errno != EAGAIN && errno != EINTR) co_return ErrnoStatus(errno, "recv");
    auto wait = WaitReadable(guest);
    const absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return status;
  }
}

}  // namespace

struct Outputs::Output {
  Output(const asio::any_io_executor& executor, std::string name)
      : id(std::move(name)), stream(std::make_shared<OutputStream>(executor)), guest(executor) {}

  const std::string id;
  const std::shared_ptr<OutputStream> stream;
  AsyncFd guest;
  // The guest has nothing more to say about it.
  bool over = false;
  // Clients that are being served, or are about to be.
  int clients = 0;
  // In the order of their opening.
  uint64_t number = 0;
  bool forgotten = false;
};

absl::StatusOr<std::shared_ptr<Outputs::Output>> Outputs::Find(const std::string& id) {
  const auto it = outputs_.find(id);
  if (it != outputs_.end()) return it->second;
  if (outputs_.size() >= kMax && !MakeRoom()) {
    return absl::ResourceExhaustedError(absl::StrCat(outputs_.size(), " outputs are being read"));
  }
  const auto output = std::make_shared<Output>(executor_, id);
  output->number = next_number_++;
  outputs_[id] = output;
  asio::co_spawn(executor_, Run(shared_from_this(), output), asio::detached);
  return output;
}

bool Outputs::MakeRoom() {
  std::shared_ptr<Output> oldest;
  for (const auto& [id, output] : outputs_) {
    if (output->clients > 0) continue;
    if (oldest == nullptr || output->number < oldest->number) oldest = output;
  }
  if (oldest == nullptr) return false;
  log_(absl::StrCat("stream ", oldest->id, ": nobody has come back for it"));
  Forget(oldest);
  return true;
}

Co<absl::Status> Outputs::Open(std::shared_ptr<Output> output) {
  auto connect = Bounded({.limit = kOutputDeadline}, link_->Connect(kOutputPort));
  absl::StatusOr<UniqueFd> guest = co_await std::move(connect);
  if (!guest.ok()) co_return guest.status();
  if (output->forgotten) co_return absl::CancelledError("nobody waits for it");
  output->guest.assign(guest->release());
  std::string name = absl::StrCat(std::string(1, static_cast<char>(output->id.size())), output->id);
  auto write = WriteAll(output->guest, std::move(name));
  absl::Status status = co_await std::move(write);
  if (!status.ok()) co_return status;
  auto claimed = ReadClaimed(output->guest);
  status = co_await std::move(claimed);
  if (!status.ok()) co_return status;
  UniqueFd source(::fcntl(output->guest.native_handle(), F_DUPFD_CLOEXEC, 0));
  if (!source.ok()) co_return ErrnoStatus(errno, "duplicate the connection");
  output->stream->Claim();
  output->stream->SetSource(std::move(source));
  co_return absl::OkStatus();
}

Co<void> Outputs::Run(std::shared_ptr<Outputs> self, std::shared_ptr<Output> output) {
  asio::steady_timer pause(self->executor_);
  bool told = false;
  while (true) {
    auto open = self->Open(output);
    const absl::Status opened = co_await std::move(open);
    if (output->forgotten) co_return;
    if (opened.ok()) break;
    if (!std::exchange(told, true)) {
      self->log_(absl::StrCat("stream ", output->id, ": ", opened.ToString()));
    }
    if (!MayPass(opened)) {
      output->stream->Break(opened);
      break;
    }
    // Its process would block if nobody read it.
    boost::system::error_code ignored;
    output->guest.close(ignored);
    pause.expires_after(kRetryPause);
    auto wait = pause.async_wait(asio::as_tuple(asio::use_awaitable));
    co_await std::move(wait);
    if (output->forgotten) co_return;
  }
  if (output->guest.is_open()) {
    auto hangup = WaitHangup(output->guest);
    const absl::Status status = co_await std::move(hangup);
    static_cast<void>(status);
  }
  output->over = true;
  self->ForgetIfOver(output);
}

void Outputs::ForgetIfOver(const std::shared_ptr<Output>& output) {
  const OutputStream& stream = *output->stream;
  if (output->forgotten || output->clients > 0) return;
  const bool wanted = stream.claimed() && !stream.delivered() && !stream.withdrawn();
  if (!wanted || output->over) Forget(output);
}

void Outputs::Forget(const std::shared_ptr<Output>& output) {
  output->forgotten = true;
  output->stream->Abandon();
  boost::system::error_code ignored;
  // The guest learns by this that all was read, or that nobody wants it.
  output->guest.close(ignored);
  outputs_.erase(output->id);
}

Co<absl::Status> Outputs::Deliver(std::shared_ptr<ttrpc::Stream> peer) {
  auto receive = peer->Receive();
  const absl::StatusOr<std::optional<std::string>> first = co_await std::move(receive);
  if (!first.ok()) co_return first.status();
  if (!first->has_value()) co_return absl::InvalidArgumentError("the stream ended before its name");
  const absl::StatusOr<std::string> id = streaming::ParseStreamInit(**first);
  if (!id.ok()) co_return id.status();
  const absl::StatusOr<streaming::StdioKind> kind = streaming::ParseStreamId(*id);
  if (!kind.ok()) co_return kind.status();
  if (*kind == streaming::StdioKind::kStdin || id->size() > kMaxOutputIdBytes) {
    co_return absl::InvalidArgumentError("the stream is no output");
  }
  const absl::StatusOr<std::shared_ptr<Output>> found = Find(*id);
  if (!found.ok()) co_return found.status();
  const std::shared_ptr<Output> output = *found;
  ++output->clients;
  const absl::Cleanup leave = [this, output] {
    --output->clients;
    ForgetIfOver(output);
  };
  auto accepted = peer->Send(streaming::AcceptedFrame());
  absl::Status status = co_await std::move(accepted);
  if (status.ok()) {
    auto serve = output->stream->Serve(peer);
    status = co_await std::move(serve);
  }
  co_return status;
}

Co<void> Outputs::Serve(UniqueFd client, std::string received) {
  auto services = std::make_shared<ttrpc::Services>();
  services->AddStream(streaming::kStreamingService, streaming::kStreamMethod,
                      [self = shared_from_this()](const ttrpc::CallContext&,
                                                  std::shared_ptr<ttrpc::Stream> stream) {
                        return self->Deliver(std::move(stream));
                      });
  auto serve =
      ttrpc::ServeConnection(std::move(client), std::move(services), kLimits, std::move(received));
  const absl::Status status = co_await std::move(serve);
  // How it ended is the client's affair; what that means for a stream, Deliver() has seen.
  static_cast<void>(status);
}

}  // namespace magnetar::supervisor
