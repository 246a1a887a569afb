#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "containerd/types.pb.h"
#include "magnetar/co.h"
#include "src/daemon/containerd/client.h"

namespace magnetar::daemon {

// The root filesystem of a container in containerd's own words: Snapshots.Mounts, or, where
// containerd (2.2 and later) has mounted a part of it by itself, what is left to mount.
// `task_mount_types` are the types of Task.Create's rootfs: they come from the guest, and
// decide between the two, never anything else. FAILED_PRECONDITION if they fit neither.
Co<absl::StatusOr<std::vector<containerd::types::Mount>>> RootfsMounts(
    ContainerdClient* containerd, std::string ns, std::string snapshotter, std::string key,
    std::string container_id, std::vector<std::string> task_mount_types);

}  // namespace magnetar::daemon
