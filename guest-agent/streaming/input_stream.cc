#include "guest-agent/streaming/input_stream.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "magnetar/streaming/frames.h"

namespace magnetar::guest {
namespace {

// Grants come in steps of this, not byte by byte.
constexpr size_t kGrantBytes = 16 << 10;
constexpr size_t kWriteBytes = 16 << 10;

}  // namespace

struct InputStream::Attachment {
  explicit Attachment(std::shared_ptr<ttrpc::Stream> s) : stream(std::move(s)) {}
  std::shared_ptr<ttrpc::Stream> stream;
  // What the peer may still send.
  size_t granted = 0;
  bool replaced = false;
  bool over = false;
  bool granting = true;
};

InputStream::InputStream(const asio::any_io_executor& executor)
    : executor_(executor), sink_(executor), changed_(executor) {}

void InputStream::SetSink(UniqueFd sink, bool terminal) {
  terminal_ = terminal;
  sink_.assign(sink.release());
  asio::co_spawn(executor_, WriteSink(shared_from_this()), asio::detached);
}

void InputStream::CloseSink() {
  discard_ = true;
  buffer_.clear();
  boost::system::error_code ignored;
  sink_.close(ignored);
  changed_.Notify();
}

void InputStream::End() {
  ended_ = true;
  changed_.Notify();
}

Co<void> InputStream::WriteSink(std::shared_ptr<InputStream> self) {
  std::string chunk;
  while (!self->discard_) {
    if (self->buffer_.empty()) {
      if (self->ended_ && !self->terminal_) break;
      co_await self->changed_.Wait();
      continue;
    }
    // A copy: the buffer grows while this waits.
    chunk.assign(self->buffer_, 0, kWriteBytes);
    const auto buffer = asio::buffer(chunk);
    auto [error, n] =
        co_await self->sink_.async_write_some(buffer, asio::as_tuple(asio::use_awaitable));
    if (self->discard_) co_return;
    if (error) break;
    self->buffer_.erase(0, n);
    self->changed_.Notify();
  }
  self->CloseSink();
}

Co<void> InputStream::GrantWindow(std::shared_ptr<InputStream> self,
                                  std::shared_ptr<Attachment> attachment) {
  while (!attachment->over && !attachment->replaced && !self->ended_) {
    const size_t used = std::min(kWindowBytes, attachment->granted + self->buffer_.size());
    const size_t grant = kWindowBytes - used;
    if (grant < kGrantBytes) {
      co_await self->changed_.Wait();
      continue;
    }
    attachment->granted += grant;
    auto send = attachment->stream->Send(streaming::WindowUpdateFrame(static_cast<int32_t>(grant)));
    const absl::Status status = co_await std::move(send);
    // A broken connection shows in Receive.
    if (!status.ok()) break;
  }
  attachment->granting = false;
  self->changed_.Notify();
}

Co<absl::Status> InputStream::ReceiveAll(std::shared_ptr<Attachment> attachment) {
  while (true) {
    auto receive = attachment->stream->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    if (attachment->replaced) co_return absl::CancelledError("the stream was opened again");
    if (!message.ok()) co_return message.status();
    if (!message->has_value()) {
      End();
      co_return absl::OkStatus();
    }
    const absl::StatusOr<std::string> data = streaming::ParseData(**message);
    if (!data.ok()) co_return data.status();
    if (data->size() > attachment->granted) {
      co_return absl::ResourceExhaustedError("more stdin than was granted");
    }
    attachment->granted -= data->size();
    if (!discard_ && !ended_) buffer_.append(*data);
    changed_.Notify();
  }
}

Co<absl::Status> InputStream::Serve(std::shared_ptr<ttrpc::Stream> peer) {
  auto self = shared_from_this();
  auto attachment = std::make_shared<Attachment>(std::move(peer));
  if (peer_ != nullptr) {
    peer_->replaced = true;
    peer_->stream->Cancel();
  }
  peer_ = attachment;
  changed_.Notify();
  asio::co_spawn(executor_, GrantWindow(self, attachment), asio::detached);
  auto receive = ReceiveAll(attachment);
  absl::Status status = co_await std::move(receive);
  attachment->over = true;
  changed_.Notify();
  if (!status.ok()) attachment->stream->Cancel();
  while (attachment->granting) co_await changed_.Wait();
  if (status.ok()) {
    auto close = attachment->stream->CloseSend();
    status = co_await std::move(close);
  }
  if (peer_ == attachment) peer_ = nullptr;
  changed_.Notify();
  co_return status;
}

}  // namespace magnetar::guest
