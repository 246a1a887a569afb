#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// The stream by which the host serves the shared directory, from its arrival until it is mounted:
// it may come before the pod is set up or while that waits. Thread-safe.
class ShareStream {
 public:
  // A connection from the host. A second one is closed: nobody could tell which is meant.
  void Offer(UniqueFd stream);

  // Waits for it and takes it. Blocks. DEADLINE_EXCEEDED: the host made none in time.
  absl::StatusOr<UniqueFd> Take(std::chrono::nanoseconds timeout);

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  UniqueFd stream_;
  bool came_ = false;
};

// Mounts what is served by 9P2000.L on a stream socket. The kernel keeps the stream, and a thread
// of its own reads from it; what moves its bytes in this program must never wait for a file of it.
absl::Status MountNinep(const UniqueFd& stream, const std::string& target);

}  // namespace magnetar::guest
