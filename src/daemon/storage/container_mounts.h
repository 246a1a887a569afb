#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/daemon/storage/file_server.h"
#include "src/daemon/storage/rootfs_plan.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {

// Where a mount of a container goes: `<shared directory>/<container id>/<name>`.
struct ShareTarget {
  SharedPlace place;
  std::string container_id;
  std::string name;  // "rootfs", "m3"
};

// Mounts a root filesystem that is shared as files. Blocks.
absl::Status ShareRootfs(const RootfsPlan& plan, const ShareTarget& target);

// Binds a file or directory of the host. Refuses, naming the mount, what a VM cannot share:
// sockets, FIFOs, devices, the host's root directory, the kernel's own filesystems (proc, sysfs,
// what is in /dev, ...), and what holds or lies in `run_directory`, where the daemon keeps all its
// sandboxes. Blocks.
absl::Status ShareBind(const HostBind& bind, const ShareTarget& target,
                       const std::string& run_directory);

// Mounts of local file systems within a container's shares, as they were mounted: "m3/data/disk".
// Blocks.
absl::StatusOr<std::vector<std::string>> NestedMounts(const SharedPlace& place,
                                                      const std::string& container_id);

// Undoes either, in the place and here, where an earlier version mounted. Nothing there is fine.
// Blocks.
absl::Status Unshare(const ShareTarget& target);
// Removes what is left of a container in the shared directory. Blocks.
absl::Status RemoveShares(const std::string& shared_directory, const std::string& container_id);

// Undoes all that is mounted here of all containers, without a journal. An absent directory is
// fine. Blocks.
absl::Status UnshareAll(const std::string& shared_directory);

}  // namespace magnetar::daemon
