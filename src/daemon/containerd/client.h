#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "containerd/containers.pb.h"
#include "containerd/types.pb.h"
#include "magnetar/co.h"

namespace magnetar::daemon {

// What the daemon asks of containerd, in the namespace of the sandbox.
// Errors: containerd's own codes; UNAVAILABLE when it cannot be reached; every
// call has a deadline of 10 s. Calls may overlap, from any executor.
class ContainerdClient {
 public:
  virtual ~ContainerdClient() = default;
  virtual Co<absl::StatusOr<containerd::services::containers::v1::Container>> GetContainer(
      std::string ns, std::string id) = 0;
  virtual Co<absl::StatusOr<std::vector<containerd::types::Mount>>> SnapshotMounts(
      std::string ns, std::string snapshotter, std::string key) = 0;
  // Ids of all sandboxes in containerd's sandbox store.
  virtual Co<absl::StatusOr<std::vector<std::string>>> ListSandboxes(std::string ns) = 0;
  virtual Co<absl::Status> PublishEvent(std::string ns, std::string topic, std::string type_url,
                                        std::string event) = 0;
};

}  // namespace magnetar::daemon
