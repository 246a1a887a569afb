#include "guest-agent/streaming/output_stream.h"

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "containerd/transfer.pb.h"
#include "guest-agent/streaming/frames.h"
#include "guest-agent/util/log.h"

namespace magnetar::guest {
namespace {

using Clock = std::chrono::steady_clock;

// containerd 2.4 kills a stream that has 64 unread messages for a second. After
// this many small frames in a row, they come at most kPace apart.
constexpr int kBurstFrames = 24;
constexpr size_t kSmallFrameBytes = 4 << 10;
constexpr auto kPace = std::chrono::milliseconds(25);

}  // namespace

struct OutputStream::Attachment {
  explicit Attachment(std::shared_ptr<ttrpc::Stream> s) : stream(std::move(s)) {}
  std::shared_ptr<ttrpc::Stream> stream;
  int64_t window = 0;
  bool replaced = false;
  // The peer ended its side, or is gone.
  bool over = false;
  absl::Status reason;
  int small_frames = 0;
  Clock::time_point last_frame;
};

OutputStream::OutputStream(const asio::any_io_executor& executor)
    : executor_(executor), source_(executor), changed_(executor) {}

void OutputStream::SetSource(UniqueFd source) {
  source_.assign(source.release());
  asio::co_spawn(executor_, ReadSource(shared_from_this()), asio::detached);
}

void OutputStream::EndSource() {
  ended_ = true;
  boost::system::error_code ignored;
  source_.close(ignored);
  changed_.Notify();
}

void OutputStream::Discard() {
  discard_ = true;
  buffer_.clear();
  changed_.Notify();
}

void OutputStream::Abandon() {
  Discard();
  EndSource();
}

Co<void> OutputStream::WaitSent(Clock::time_point deadline) {
  while (!end_sent_ && peer_ != nullptr && Clock::now() < deadline) {
    co_await changed_.WaitUntil(deadline);
  }
}

Co<void> OutputStream::ReadSource(std::shared_ptr<OutputStream> self) {
  std::string chunk;
  while (!self->ended_) {
    const size_t room = self->discard_ ? kFrameBytes : kBufferBytes - self->buffer_.size();
    if (room == 0) {
      co_await self->changed_.Wait();
      continue;
    }
    chunk.resize(std::min(room, kFrameBytes));
    const auto buffer = asio::buffer(chunk);
    auto [error, n] =
        co_await self->source_.async_read_some(buffer, asio::as_tuple(asio::use_awaitable));
    if (self->ended_) break;
    if (error) {
      // A terminal's master fails with EIO once its last user is gone; a pipe ends.
      self->EndSource();
      break;
    }
    if (!self->discard_) {
      self->buffer_.append(chunk, 0, n);
      self->changed_.Notify();
    }
  }
}

Co<void> OutputStream::ReadWindow(std::shared_ptr<OutputStream> self,
                                  std::shared_ptr<Attachment> attachment) {
  while (!attachment->over) {
    auto receive = attachment->stream->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    if (!message.ok() || !message->has_value()) {
      attachment->over = true;
      attachment->reason = message.status();
      break;
    }
    const absl::StatusOr<int64_t> update = ParseWindowUpdate(**message);
    if (!update.ok()) {
      attachment->over = true;
      attachment->reason = update.status();
      break;
    }
    attachment->window = std::min(attachment->window + *update, kMaxWindowBytes);
    attachment->small_frames = 0;
    self->changed_.Notify();
  }
  self->changed_.Notify();
}

bool OutputStream::HoldBack(const Attachment& attachment) const {
  return attachment.small_frames >= kBurstFrames && buffer_.size() < kSmallFrameBytes && !ended_ &&
         Clock::now() < attachment.last_frame + kPace;
}

Co<absl::Status> OutputStream::SendAll(std::shared_ptr<Attachment> attachment) {
  while (!attachment->replaced && !attachment->over) {
    if (buffer_.empty() && ended_) {
      auto close = attachment->stream->CloseSend();
      const absl::Status status = co_await std::move(close);
      if (status.ok()) end_sent_ = true;
      changed_.Notify();
      co_return status;
    }
    if (buffer_.empty() || attachment->window <= 0) {
      co_await changed_.Wait();
      continue;
    }
    if (HoldBack(*attachment)) {
      co_await changed_.WaitUntil(attachment->last_frame + kPace);
      continue;
    }
    const size_t n =
        std::min({buffer_.size(), kFrameBytes, static_cast<size_t>(attachment->window)});
    auto send = attachment->stream->Send(DataFrame(absl::string_view(buffer_).substr(0, n)));
    const absl::Status status = co_await std::move(send);
    // Unsent bytes stay for the next peer.
    if (!status.ok()) co_return status;
    buffer_.erase(0, std::min(n, buffer_.size()));
    attachment->window -= static_cast<int64_t>(n);
    if (n < kSmallFrameBytes) {
      ++attachment->small_frames;
    }
    attachment->last_frame = Clock::now();
    changed_.Notify();
  }
  if (attachment->replaced) co_return absl::CancelledError("the stream was opened again");
  co_return attachment->reason;
}

Co<absl::Status> OutputStream::Serve(std::shared_ptr<ttrpc::Stream> peer) {
  auto self = shared_from_this();
  auto attachment = std::make_shared<Attachment>(std::move(peer));
  if (peer_ != nullptr) {
    peer_->replaced = true;
    peer_->stream->Cancel();
  }
  peer_ = attachment;
  changed_.Notify();
  asio::co_spawn(executor_, ReadWindow(self, attachment), asio::detached);
  auto send = SendAll(attachment);
  absl::Status status = co_await std::move(send);
  // The window updates that are still under way are read and forgotten, until the peer ends too.
  while (status.ok() && !attachment->over && !attachment->replaced) co_await changed_.Wait();
  if (!status.ok()) attachment->stream->Cancel();
  attachment->over = true;
  if (peer_ == attachment) peer_ = nullptr;
  changed_.Notify();
  co_return status;
}

}  // namespace magnetar::guest
