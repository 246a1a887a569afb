#pragma once

#include <array>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"
#include "src/common/ttrpc/frame.h"

namespace magnetar::ttrpc {

// Beyond this a timeout is none; it also keeps the sum with the clock in range.
inline constexpr std::chrono::nanoseconds kMaxTimeout = std::chrono::hours(24 * 365);

// A frame on its way out.
class Outgoing {
 public:
  Outgoing(FrameHeader header, std::string body)
      : header_(EncodeHeader(header)), body_(std::move(body)) {}

  // Whether the socket has taken all of it. Of one that was withdrawn nobody knows.
  bool written() const { return written_; }

 private:
  friend class Connection;
  enum class State { kQueued, kWriting, kDone };

  size_t bytes() const { return sizeof(Outgoing) + body_.size(); }

  std::array<char, kHeaderBytes> header_;
  std::string body_;
  State state_ = State::kQueued;
  bool written_ = false;
  bool refusal_ = false;
  absl::Status result_;
  std::optional<Event> done_;  // there only if someone waits
};

// The socket of a client or a server: cuts what comes in into frames, and writes
// what goes out in order. One executor for everything.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Sink = std::function<absl::Status(Frame frame)>;

  Connection(const asio::any_io_executor& executor, UniqueFd socket, const Limits& limits);

  // Hands every frame to `sink`, in order, until the peer closes (OK), the connection breaks or
  // is closed here, the sink fails, or the coroutine is cancelled. Does not close the connection.
  // `received` came first.
  Co<absl::Status> ReadFrames(Sink sink, std::string received = {});

  // Puts a frame last in the queue. A caller that does not wait for it to be written bounds
  // what it queues by other means.
  std::shared_ptr<Outgoing> Queue(uint32_t stream_id, FrameType type, uint8_t flags,
                                  std::string body);
  // The same for several data frames, which one write takes as far as possible; `flags` of the
  // last.
  std::vector<std::shared_ptr<Outgoing>> QueueData(uint32_t stream_id, uint8_t flags,
                                                   std::vector<std::string> bodies);
  // For answers that the reader itself gives: with too many of them unwritten,
  // reading pauses.
  void QueueRefusal(uint32_t stream_id, std::string body);

  // Completes when each of the frames has been handed to the socket, was withdrawn, or is lost with
  // the connection; with the status of the last. A caller that is cancelled meanwhile withdraws
  // them.
  Co<absl::Status> Written(std::vector<std::shared_ptr<Outgoing>> frames);
  Co<absl::Status> Written(std::shared_ptr<Outgoing> frame);

  // Takes a frame back of which nothing has been written yet; its waiter gets
  // `reason` either way.
  void Withdraw(Outgoing& frame, const absl::Status& reason);

  // Drops what is queued. The first reason is kept.
  void Close(absl::Status reason);
  bool closed() const { return closed_.has_value(); }
  // Why the connection is closed.
  absl::Status reason() const { return closed_.value_or(absl::OkStatus()); }

  const asio::any_io_executor& executor() const { return executor_; }

 private:
  enum class ReadResult { kDrained, kMore, kEnd };

  absl::StatusOr<ReadResult> ReadSome(const Sink& sink);
  absl::Status Feed(std::string_view input, const Sink& sink);
  void Append(std::shared_ptr<Outgoing> frame);
  void StartWrite();
  void FinishWrite(const boost::system::error_code& error, size_t bytes);
  void Finish(Outgoing& frame, const absl::Status& result);

  const asio::any_io_executor executor_;
  asio::generic::stream_protocol::socket socket_;
  FrameParser parser_;
  std::deque<std::shared_ptr<Outgoing>> queue_;
  std::vector<std::shared_ptr<Outgoing>> writing_;
  size_t refusal_bytes_ = 0;
  Event refusals_written_;
  std::optional<absl::Status> closed_;
};

}  // namespace magnetar::ttrpc
