#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "guest-agent/agent/host_link.h"
#include "guest-agent/util/notifier.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest {

struct HostRequestTimes {
  // How long a Prepare waits for a daemon to be there, and for its answer.
  std::chrono::milliseconds connect = std::chrono::seconds(10);
  std::chrono::milliseconds prepare = std::chrono::seconds(90);
  // How long a Release keeps its caller waiting.
  std::chrono::milliseconds release = std::chrono::seconds(10);
  // After how long a Release that a daemon could not do is sent again: at first, doubled each
  // time, at most.
  std::chrono::milliseconds retry = std::chrono::seconds(1);
  std::chrono::milliseconds max_retry = std::chrono::minutes(1);
};

// Requests to the host on the stream that a daemon opens. What a lost daemon left
// unanswered is sent again, in order, to the next. One thread.
class HostRequests : public HostLink {
 public:
  // Events that no daemon has answered yet; the oldest is dropped first.
  static constexpr size_t kMaxEvents = 1024;

  explicit HostRequests(const asio::any_io_executor& executor, HostRequestTimes times = {});

  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(
      std::string container_id, std::vector<std::string> rootfs_mount_types) override;
  Co<void> Release(std::string container_id) override;
  void Publish(agent::v1::GuestEvent event) override;

  // Handler of Agent.HostRequests: serves until the stream ends or another replaces it.
  Co<absl::Status> Serve(std::shared_ptr<ttrpc::Stream> stream);

  size_t waiting() const { return waiting_.size() + refused_.size(); }

 private:
  struct Waiting;
  struct Connection;

  std::shared_ptr<Waiting> Enqueue(agent::v1::HostRequest request);
  void Enqueue(const std::shared_ptr<Waiting>& waiting);
  static Co<void> ReceiveAnswers(HostRequests* self, std::shared_ptr<Connection> connection);
  static Co<void> RetryLater(HostRequests* self, std::shared_ptr<Waiting> release);
  // Puts a refused release back in line.
  void Retry(const std::shared_ptr<Waiting>& release);
  // A container of this id is about to be there again: what is left of the older one's
  // release comes first, and is not sent again after it.
  void SettleReleases(const std::string& container_id);
  absl::Status HandleAnswer(const std::string& message);

  asio::any_io_executor executor_;
  const HostRequestTimes times_;
  Notifier changed_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::shared_ptr<Waiting>> waiting_;
  // Releases that a daemon could not do, by their old ids.
  std::map<uint64_t, std::shared_ptr<Waiting>> refused_;
  // Ids of the events among them.
  std::set<uint64_t> events_;
  std::shared_ptr<Connection> connection_;
};

}  // namespace magnetar::guest
