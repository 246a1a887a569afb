#include "magnetar/streaming/output_stream.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <utility>

#include "magnetar/streaming/frames.h"

namespace magnetar::streaming {
namespace {

using Clock = std::chrono::steady_clock;

// containerd 2.4 kills a stream that has 64 unread messages for a second. After
// this many small frames in a row, they come at most kPace apart.
constexpr int kBurstFrames = 24;
constexpr size_t kSmallFrameBytes = 4 << 10;
constexpr auto kPace = std::chrono::milliseconds(25);
// Of one stream, before others get their turn.
constexpr int kReadsInARow = 8;

// What is being read, of any stream: it holds nothing while a coroutine is suspended.
std::array<char, OutputStream::kBufferBytes> input;
// The memory of the buffer that was emptied last: an idle stream keeps none, and a busy one does
// not allocate for every read.
std::string spare;

// A reader of containerd that has read all grants its next window, and one that finds the stream
// closed by then keeps a goroutine for ever (core/transfer/streaming/reader.go, until 2.4). So the
// end waits for that grant: with this much of a window there is none under way.
constexpr int64_t kGrantBytes = 64 << 10;
// For a reader that does not read; 200 ms are too few for a containerd that gets no processor.
constexpr std::chrono::seconds kGrantWait{10};

// Whether nothing is left to read and nothing will come.
bool AtEnd(int fd) {
  pollfd entry = {fd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & POLLIN) == 0 &&
         (entry.revents & (POLLHUP | POLLERR)) != 0;
}

}  // namespace

struct OutputStream::Attachment {
  explicit Attachment(std::shared_ptr<ttrpc::Stream> s) : stream(std::move(s)) {}
  std::shared_ptr<ttrpc::Stream> stream;
  int64_t window = 0;
  int64_t widest = 0;
  // One that began with less does not count as containerd does.
  bool GrantComes() const { return window < kGrantBytes && (widest == 0 || widest >= kGrantBytes); }
  bool replaced = false;
  bool end_sent = false;
  // The peer ended its side, or is gone.
  bool over = false;
  absl::Status reason;
  int small_frames = 0;
  Clock::time_point last_frame;
  // When the end is sent, whatever the window.
  std::optional<Clock::time_point> end_due;
};

OutputStream::OutputStream(const asio::any_io_executor& executor)
    : executor_(executor), source_(executor), changed_(executor) {}

void OutputStream::Claim() {
  claimed_ = true;
  changed_.NotifyAll();
}

void OutputStream::SetSource(UniqueFd source) {
  source_.assign(source.release());
  source_.native_non_blocking(true);
  changed_.NotifyAll();
  asio::co_spawn(executor_, ReadSource(shared_from_this()), asio::detached);
}

void OutputStream::EndSource() {
  ended_ = true;
  boost::system::error_code ignored;
  source_.close(ignored);
  changed_.NotifyAll();
}

void OutputStream::Discard() {
  discard_ = true;
  DropAll();
  changed_.NotifyAll();
  if (reader_ != nullptr) reader_->Cut();
}

void OutputStream::Abandon() {
  Discard();
  EndSource();
}

void OutputStream::Break(absl::Status why) {
  broken_ = std::move(why);
  Abandon();
}

Co<void> OutputStream::WaitDelivered(Clock::time_point opening, Clock::time_point deadline) {
  while (!delivered_ && !discard_ && (attached() || !was_attached_)) {
    const Clock::time_point until = attached() ? deadline : opening;
    if (Clock::now() >= until) break;
    co_await changed_.WaitUntil(until);
  }
}

void OutputStream::Attach(std::shared_ptr<Reader> reader) {
  ReplacePeer();
  const std::shared_ptr<Reader> old = std::exchange(reader_, std::move(reader));
  was_attached_ = true;
  if (old != nullptr) old->Cut();
  // It reads no more on its own, unless for nobody.
  if (source_.is_open() && !discard_) source_.cancel();
  changed_.NotifyAll();
}

std::optional<OutputStream::Source> OutputStream::Take(const Reader& reader) {
  if (reader_.get() != &reader || taken_by_ != nullptr || sending_) return std::nullopt;
  if (!ended_ && (discard_ || !source_.is_open())) return std::nullopt;
  Source source;
  if (!ended_) {
    source.fd.reset(::fcntl(source_.native_handle(), F_DUPFD_CLOEXEC, 0));
    if (!source.fd.ok()) {
      reader_->Cut();
      return std::nullopt;
    }
  }
  source.unsent = std::string(Unsent());
  DropAll();
  taken_by_ = &reader;
  return source;
}

void OutputStream::Detach(const Reader& reader) {
  if (taken_by_ == &reader) {
    taken_by_ = nullptr;
    if (!ended_ && AtEnd(source_.native_handle())) EndSource();
    if (ended_) delivered_ = true;
  }
  if (reader_.get() == &reader) reader_ = nullptr;
  changed_.NotifyAll();
}

void OutputStream::ReplacePeer() {
  if (peer_ == nullptr) return;
  peer_->replaced = true;
  peer_->stream->Cancel();
}

Co<void> OutputStream::ReadSource(std::shared_ptr<OutputStream> self) {
  int reads = 0;
  while (!self->ended_) {
    if (self->taken_by_ != nullptr || (self->reader_ != nullptr && !self->discard_)) {
      co_await self->changed_.Wait();
      continue;
    }
    const size_t unsent = self->Unsent().size();
    // Not a few bytes at a time: whoever writes would be woken for each.
    if (!self->discard_ && unsent > kBufferBytes / 2) {
      co_await self->changed_.Wait();
      continue;
    }
    const ssize_t n = self->ReadSome();
    if (n > 0) {
      if (++reads < kReadsInARow) continue;
      reads = 0;
      auto turn = asio::post(self->executor_, asio::use_awaitable);
      co_await std::move(turn);
      continue;
    }
    reads = 0;
    // A terminal's master fails with EIO once its last user is gone; a pipe ends.
    if (n == 0 || errno != EAGAIN) {
      self->EndSource();
      break;
    }
    auto wait = self->source_.async_wait(asio::posix::descriptor_base::wait_read,
                                         asio::as_tuple(asio::use_awaitable));
    const auto [error] = co_await std::move(wait);
    // A reader has come.
    if (error == asio::error::operation_aborted) continue;
    if (error) {
      self->EndSource();
      break;
    }
  }
}

ssize_t OutputStream::ReadSome() {
  const size_t room = kBufferBytes - Unsent().size();
  ssize_t n;
  do {
    n = ::read(source_.native_handle(), input.data(), room);
  } while (n < 0 && errno == EINTR);
  if (n <= 0 || discard_) return n;
  if (buffer_.empty()) {
    buffer_.swap(spare);
    buffer_.reserve(kBufferBytes);
  } else {
    buffer_.erase(0, std::exchange(sent_, 0));
  }
  buffer_.append(input.data(), static_cast<size_t>(n));
  changed_.NotifyAll();
  return n;
}

void OutputStream::DropSent(size_t bytes) {
  sent_ += std::min(bytes, Unsent().size());
  if (sent_ == buffer_.size()) DropAll();
}

void OutputStream::DropAll() {
  sent_ = 0;
  buffer_.clear();
  if (buffer_.capacity() > spare.capacity()) buffer_.swap(spare);
  buffer_ = std::string();
}

std::vector<std::string> OutputStream::NextFrames(int64_t window) const {
  std::vector<std::string> frames;
  absl::string_view rest = Unsent().substr(0, static_cast<size_t>(window));
  while (!rest.empty()) {
    frames.push_back(DataFrame(rest.substr(0, kFrameBytes)));
    rest.remove_prefix(std::min(rest.size(), kFrameBytes));
  }
  return frames;
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
    attachment->widest = std::max(attachment->widest, attachment->window);
    attachment->small_frames = 0;
    self->changed_.NotifyAll();
  }
  self->changed_.NotifyAll();
}

bool OutputStream::HoldBack(const Attachment& attachment) const {
  return attachment.small_frames >= kBurstFrames && Unsent().size() < kSmallFrameBytes && !ended_ &&
         Clock::now() < attachment.last_frame + kPace;
}

Co<absl::Status> OutputStream::SendTo(std::shared_ptr<Attachment> attachment) {
  while (!attachment->replaced && !attachment->over) {
    if (!broken_.ok()) co_return broken_;
    if (Unsent().empty() && ended_) {
      if (!attachment->end_due.has_value()) attachment->end_due = Clock::now() + kGrantWait;
      if (attachment->GrantComes() && Clock::now() < *attachment->end_due) {
        co_await changed_.WaitUntil(*attachment->end_due);
        continue;
      }
      auto close = attachment->stream->CloseSend();
      const absl::Status status = co_await std::move(close);
      attachment->end_sent = status.ok();
      co_return status;
    }
    if (Unsent().empty() || attachment->window <= 0) {
      co_await changed_.Wait();
      continue;
    }
    if (HoldBack(*attachment)) {
      co_await changed_.WaitUntil(attachment->last_frame + kPace);
      continue;
    }
    const size_t n = std::min(Unsent().size(), static_cast<size_t>(attachment->window));
    sending_ = true;
    auto send = attachment->stream->SendAll(NextFrames(attachment->window));
    const ttrpc::Stream::Sent sent = co_await std::move(send);
    // Unsent bytes stay for the next peer. All frames but the last one are full.
    DropSent(std::min(n, sent.sent * kFrameBytes));
    sending_ = false;
    changed_.NotifyAll();
    if (!sent.status.ok()) co_return sent.status;
    attachment->window -= static_cast<int64_t>(n);
    if (n < kSmallFrameBytes) {
      ++attachment->small_frames;
    }
    attachment->last_frame = Clock::now();
  }
  if (attachment->replaced) co_return absl::CancelledError("the stream was opened again");
  co_return attachment->reason;
}

Co<absl::Status> OutputStream::Serve(std::shared_ptr<ttrpc::Stream> peer) {
  auto self = shared_from_this();
  if (reader_ != nullptr) {
    co_return absl::FailedPreconditionError("the host reads this stream by itself");
  }
  auto attachment = std::make_shared<Attachment>(std::move(peer));
  ReplacePeer();
  peer_ = attachment;
  was_attached_ = true;
  withdrawn_ = false;
  changed_.NotifyAll();
  asio::co_spawn(executor_, ReadWindow(self, attachment), asio::detached);
  // What the last one has got is known once its send has ended.
  while (sending_) co_await changed_.Wait();
  auto send = SendTo(attachment);
  absl::Status status = co_await std::move(send);
  // The window updates that are still under way are read and forgotten, until the peer ends too.
  while (attachment->end_sent && !attachment->over && !attachment->replaced) {
    co_await changed_.Wait();
  }
  if (attachment->over && attachment->reason.ok() && !attachment->replaced) {
    (attachment->end_sent ? delivered_ : withdrawn_) = true;
  }
  if (!status.ok()) attachment->stream->Cancel();
  attachment->over = true;
  if (peer_ == attachment) peer_ = nullptr;
  changed_.NotifyAll();
  co_return status;
}

}  // namespace magnetar::streaming
