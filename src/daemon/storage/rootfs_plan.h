#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "containerd/types.pb.h"

namespace magnetar::daemon {

// How a container's root filesystem reaches its guest.
struct RootfsPlan {
  enum class Kind {
    kOverlay,  // mounted on the host, shared as files
    kBind,     // a directory of the host, shared as files
    kDisk,     // an image or a block device, attached as a disk and mounted by the guest
  } kind = Kind::kBind;
  std::string source;      // kBind, kDisk
  bool recursive = false;  // kBind
  bool read_only = false;
  std::string fstype;  // kDisk
  // kOverlay: all of containerd's; kDisk: those that are left for the guest's mount.
  std::vector<std::string> options;
};

// Pure. INVALID_ARGUMENT: a mount type nobody knows, or nonsense. FAILED_PRECONDITION: a form of
// containerd's that is known but not supported (not UNIMPLEMENTED: from a Task.Create it makes
// containerd try an older Task API). Both name the types. Facts: what containerd's snapshotters
// answer to Snapshots.Mounts (overlayfs, native, blockfile, devmapper, erofs).
absl::StatusOr<RootfsPlan> PlanRootfs(const std::vector<containerd::types::Mount>& mounts);

}  // namespace magnetar::daemon
