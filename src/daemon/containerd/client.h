#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "containerd/containers.pb.h"
#include "containerd/types.pb.h"
#include "magnetar/co.h"

namespace magnetar::daemon {

// What the daemon asks of containerd, in the namespace of the sandbox.
// Errors: containerd's own codes; UNAVAILABLE when it cannot be reached; every
// call has a deadline of 10 s. Calls may overlap, from any executor, and resume
// on the caller's; a cancelled call ends at once.
class ContainerdClient {
 public:
  virtual ~ContainerdClient() = default;

  // Speaks gRPC to containerd's socket: "unix:///run/containerd/containerd.sock" or
  // the bare path. Connects with the first call and again whenever containerd
  // comes back; it never fails itself. Calls in flight outlive the client.
  static std::unique_ptr<ContainerdClient> Create(const std::string& address);

  // Waits for a containerd that is just starting.
  virtual Co<absl::StatusOr<containerd::services::containers::v1::Container>> GetContainer(
      std::string ns, std::string id) = 0;
  virtual Co<absl::StatusOr<std::vector<containerd::types::Mount>>> SnapshotMounts(
      std::string ns, std::string snapshotter, std::string key) = 0;
  // What containerd's mount manager (2.2 and later) has left for a task to mount after it
  // has done the rest itself; a task's mounts bear its container's id. NOT_FOUND: it did
  // nothing. UNIMPLEMENTED: a containerd without one.
  virtual Co<absl::StatusOr<std::vector<containerd::types::Mount>>> ActivatedMounts(
      std::string ns, std::string container_id) = 0;
  // Ids of all sandboxes in containerd's sandbox store.
  virtual Co<absl::StatusOr<std::vector<std::string>>> ListSandboxes(std::string ns) = 0;
  // Publishes with the present time, as soon as containerd is there. `event` is a message of type
  // `type_url`, serialized.
  virtual Co<absl::Status> PublishEvent(std::string ns, std::string topic, std::string type_url,
                                        std::string event) = 0;
};

}  // namespace magnetar::daemon
