#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/co.h"

namespace magnetar::guest {

// What the agent asks of its host (a fake in tests).
class HostLink {
 public:
  virtual ~HostLink() = default;
  // UNAVAILABLE: no daemon came in time; DEADLINE_EXCEEDED: it did not answer.
  virtual Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(
      std::string container_id, std::vector<std::string> rootfs_mount_types) = 0;
  // Returns once a daemon has answered, whatever it said; at once if there is none, and
  // after a while if it is silent. It is remembered and sent again until a daemon has done it,
  // or is asked to prepare a container of that id again.
  virtual Co<void> Release(std::string container_id) = 0;
  // Told in order, once or, if a daemon ends meanwhile, more than once; the oldest are dropped if
  // too many wait.
  virtual void Publish(agent::v1::GuestEvent event) = 0;
};

}  // namespace magnetar::guest
