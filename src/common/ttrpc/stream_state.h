#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/common/ttrpc/connection.h"

namespace magnetar::ttrpc {

// Bytes of unread messages (and of requests being served) on one connection.
class BufferBudget {
 public:
  explicit BufferBudget(size_t limit) : limit_(limit) {}
  bool Take(size_t bytes) {
    if (bytes > limit_ - used_) return false;
    used_ += bytes;
    return true;
  }
  void Give(size_t bytes) { used_ -= bytes; }

 private:
  const size_t limit_;
  size_t used_ = 0;
};

// A stream as both ends see it. Ends in one of three ways: the peer closes its side (EndOfPeer),
// something fails (Fail), or the user gives up (Cancel).
class StreamState : public Stream, public std::enable_shared_from_this<StreamState> {
 public:
  StreamState(std::shared_ptr<Connection> connection, std::shared_ptr<BufferBudget> budget,
              uint32_t id, const Limits& limits);
  ~StreamState() override;

  Co<absl::StatusOr<std::optional<std::string>>> Receive() override;
  Co<absl::Status> Send(std::string message) override;
  Co<Sent> SendAll(std::vector<std::string> messages) override;
  Co<absl::Status> CloseSend() override;
  void Cancel() override;

  // From the connection's reader, in the order of the frames. Deliver is false if the
  // backlog has no room for the message.
  [[nodiscard]] bool Deliver(std::string message);
  void EndOfPeer();
  // Receive gives what came before, then `status`; Send fails with it at once.
  void Fail(absl::Status status);
  // The same, without what came before.
  void FailNow(absl::Status status);

  // Called once when both sides are done with the stream's id. Set by the client.
  void OnFinished(std::function<void()> finished) { finished_ = std::move(finished); }

  uint32_t id() const { return id_; }
  bool peer_ended() const { return end_.has_value(); }
  bool send_closed() const { return send_closed_; }

 private:
  // `flags` of the last frame.
  Co<Sent> SendFrames(uint8_t flags, std::vector<std::string> bodies);
  void CheckFinished();
  void DropBacklog();

  const std::shared_ptr<Connection> connection_;
  const std::shared_ptr<BufferBudget> budget_;
  const uint32_t id_;
  const Limits limits_;
  std::deque<std::string> backlog_;
  size_t backlog_bytes_ = 0;
  Event readable_;
  std::vector<std::shared_ptr<Outgoing>> sending_;  // in order
  std::optional<absl::Status> end_;  // what follows the backlog; OK: the peer ended its side
  absl::Status broken_;              // why nothing can be sent any more
  bool send_closed_ = false;
  std::function<void()> finished_;
};

}  // namespace magnetar::ttrpc
