#include "src/common/ttrpc/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::ttrpc {
namespace {

constexpr size_t kReadBytes = 16 << 10;
// Buffers filled in a row before other coroutines get their turn.
constexpr int kReadsInARow = 8;
constexpr size_t kMaxRefusalBytes = 256 << 10;
// One write takes this much of the queue, or one frame.
constexpr size_t kWriteBytes = 256 << 10;
constexpr size_t kWriteFrames = 32;

int DomainOf(int fd) {
  int domain = AF_UNIX;
  socklen_t size = sizeof(domain);
  // Of a descriptor that is no socket the reads and writes will tell.
  ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
  return domain;
}

}  // namespace

Connection::Connection(const asio::any_io_executor& executor, UniqueFd socket, const Limits& limits)
    : executor_(executor),
      socket_(executor),
      parser_(std::min(limits.max_message_bytes, limits.max_received_bytes)),
      refusals_written_(executor) {
  boost::system::error_code error;
  const asio::generic::stream_protocol protocol(DomainOf(socket.get()), 0);
  socket_.assign(protocol, socket.get(), error);
  if (!error) {
    (void)socket.release();
    socket_.non_blocking(true, error);
  }
  if (error) Close(absl::UnavailableError(absl::StrCat("socket: ", error.message())));
}

Co<absl::Status> Connection::ReadFrames(Sink sink, std::string received) {
  const auto self = shared_from_this();
  const absl::Status begun = Feed(received, sink);
  if (!begun.ok()) co_return begun;
  while (true) {
    if (closed()) co_return reason();
    auto readable =
        socket_.async_wait(asio::socket_base::wait_read, asio::as_tuple(asio::use_awaitable));
    const auto [error] = co_await std::move(readable);
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (Cancelled(cancellation))
      co_return absl::CancelledError("serving the connection was cancelled");
    if (closed()) co_return reason();
    if (error) co_return absl::UnavailableError(absl::StrCat("wait: ", error.message()));

    for (int i = 0; i < kReadsInARow; ++i) {
      const absl::StatusOr<ReadResult> read = ReadSome(sink);
      if (!read.ok()) co_return read.status();
      if (*read == ReadResult::kEnd) co_return absl::OkStatus();
      if (*read == ReadResult::kDrained) break;
      if (refusal_bytes_ > kMaxRefusalBytes) break;
    }
    while (refusal_bytes_ > kMaxRefusalBytes && !closed()) {
      auto written = refusals_written_.Wait();
      co_await std::move(written);
      const auto cancellation_now = co_await asio::this_coro::cancellation_state;
      if (Cancelled(cancellation_now))
        co_return absl::CancelledError("serving the connection was cancelled");
    }
  }
}

absl::StatusOr<Connection::ReadResult> Connection::ReadSome(const Sink& sink) {
  char buffer[kReadBytes];
  const ssize_t n = ::recv(socket_.native_handle(), buffer, sizeof(buffer), MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return ReadResult::kDrained;
    return absl::UnavailableError(ErrnoStatus(errno, "connection broke").message());
  }
  if (n == 0) {
    if (parser_.InFrame()) return absl::UnavailableError("connection ended inside a frame");
    return ReadResult::kEnd;
  }
  MAGNETAR_RETURN_IF_ERROR(Feed({buffer, static_cast<size_t>(n)}, sink));
  return static_cast<size_t>(n) == sizeof(buffer) ? ReadResult::kMore : ReadResult::kDrained;
}

absl::Status Connection::Feed(std::string_view input, const Sink& sink) {
  while (!input.empty()) {
    absl::StatusOr<std::optional<Frame>> frame = parser_.Next(input);
    if (!frame.ok()) return frame.status();
    if (!frame->has_value()) break;
    MAGNETAR_RETURN_IF_ERROR(sink(*std::move(*frame)));
    if (closed()) return reason();
  }
  return absl::OkStatus();
}

std::shared_ptr<Outgoing> Connection::Queue(uint32_t stream_id, FrameType type, uint8_t flags,
                                            std::string body) {
  const FrameHeader header{static_cast<uint32_t>(body.size()), stream_id, type, flags};
  auto frame = std::make_shared<Outgoing>(header, std::move(body));
  Append(frame);
  return frame;
}

std::vector<std::shared_ptr<Outgoing>> Connection::QueueData(uint32_t stream_id, uint8_t flags,
                                                             std::vector<std::string> bodies) {
  std::vector<std::shared_ptr<Outgoing>> frames;
  frames.reserve(bodies.size());
  for (std::string& body : bodies) {
    const FrameHeader header{static_cast<uint32_t>(body.size()), stream_id, FrameType::kData,
                             &body == &bodies.back() ? flags : uint8_t{0}};
    frames.push_back(std::make_shared<Outgoing>(header, std::move(body)));
    if (closed()) {
      Finish(*frames.back(), reason());
    } else {
      queue_.push_back(frames.back());
    }
  }
  if (writing_.empty() && !queue_.empty()) StartWrite();
  return frames;
}

void Connection::QueueRefusal(uint32_t stream_id, std::string body) {
  const FrameHeader header{static_cast<uint32_t>(body.size()), stream_id, FrameType::kResponse, 0};
  auto frame = std::make_shared<Outgoing>(header, std::move(body));
  frame->refusal_ = true;
  refusal_bytes_ += frame->bytes();
  Append(std::move(frame));
}

void Connection::Append(std::shared_ptr<Outgoing> frame) {
  if (closed()) {
    Finish(*frame, reason());
    return;
  }
  queue_.push_back(std::move(frame));
  if (writing_.empty()) StartWrite();
}

Co<absl::Status> Connection::Written(std::shared_ptr<Outgoing> frame) {
  auto written = Written(std::vector{std::move(frame)});
  co_return co_await std::move(written);
}

Co<absl::Status> Connection::Written(std::vector<std::shared_ptr<Outgoing>> frames) {
  const auto self = shared_from_this();
  struct Guard {
    Connection& connection;
    const std::vector<std::shared_ptr<Outgoing>>& frames;
    ~Guard() {
      for (const auto& frame : frames) {
        connection.Withdraw(*frame, absl::CancelledError("send was cancelled"));
      }
    }
  } guard{*this, frames};
  for (const auto& frame : frames) {
    while (frame->state_ != Outgoing::State::kDone) {
      if (!frame->done_.has_value()) frame->done_.emplace(executor_);
      auto done = frame->done_->Wait();
      co_await std::move(done);
      const auto cancellation = co_await asio::this_coro::cancellation_state;
      if (Cancelled(cancellation)) co_return absl::CancelledError("send was cancelled");
    }
  }
  co_return frames.empty() ? absl::OkStatus() : frames.back()->result_;
}

void Connection::Withdraw(Outgoing& frame, const absl::Status& reason) {
  if (frame.state_ == Outgoing::State::kDone) return;
  if (frame.state_ == Outgoing::State::kQueued) {
    const auto at = std::find_if(queue_.begin(), queue_.end(),
                                 [&](const auto& queued) { return queued.get() == &frame; });
    if (at != queue_.end()) {
      const std::shared_ptr<Outgoing> keep = std::move(*at);
      queue_.erase(at);
      Finish(frame, reason);
      return;
    }
  }
  // What the socket took of it is known in a moment.
  if (closed()) return;
  // The socket still needs the bytes; only the waiter goes.
  Finish(frame, reason);
}

void Connection::StartWrite() {
  std::vector<asio::const_buffer> buffers;
  size_t bytes = 0;
  while (!queue_.empty() && writing_.size() < kWriteFrames && bytes < kWriteBytes) {
    std::shared_ptr<Outgoing> frame = std::move(queue_.front());
    queue_.pop_front();
    frame->state_ = Outgoing::State::kWriting;
    buffers.push_back(asio::buffer(frame->header_));
    if (!frame->body_.empty()) buffers.push_back(asio::buffer(frame->body_));
    bytes += frame->body_.size();
    writing_.push_back(std::move(frame));
  }
  asio::async_write(socket_, buffers,
                    [self = shared_from_this()](const boost::system::error_code& error, size_t n) {
                      self->FinishWrite(error, n);
                    });
}

void Connection::FinishWrite(const boost::system::error_code& error, size_t bytes) {
  const std::vector<std::shared_ptr<Outgoing>> written = std::exchange(writing_, {});
  if (error && !closed()) {
    Close(absl::UnavailableError(absl::StrCat("connection broke: ", error.message())));
  }
  for (const auto& frame : written) {
    const size_t size = frame->header_.size() + frame->body_.size();
    if (bytes >= size) frame->written_ = true;
    bytes -= std::min(bytes, size);
    Finish(*frame, reason());
  }
  if (!queue_.empty() && !closed()) StartWrite();
}

void Connection::Finish(Outgoing& frame, const absl::Status& result) {
  if (frame.refusal_) {
    refusal_bytes_ -= frame.bytes();
    frame.refusal_ = false;
    refusals_written_.NotifyAll();
  }
  if (frame.state_ == Outgoing::State::kDone) return;
  frame.state_ = Outgoing::State::kDone;
  frame.result_ = result;
  if (frame.done_.has_value()) frame.done_->NotifyAll();
}

void Connection::Close(absl::Status reason) {
  if (closed()) return;
  closed_ = std::move(reason);
  boost::system::error_code ignored;
  socket_.close(ignored);
  const std::deque<std::shared_ptr<Outgoing>> dropped = std::exchange(queue_, {});
  for (const auto& frame : dropped) Finish(*frame, *closed_);
  refusals_written_.NotifyAll();
}

}  // namespace magnetar::ttrpc
