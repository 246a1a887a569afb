#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {

// An emptyDir that the guest holds in its own memory instead of the host's.
struct GuestVolume {
  size_t index = 0;   // of the mount in the spec
  std::string field;  // for messages: "mounts[3] /cache"
  std::string name;   // the same for all of the pod's containers: "<pod uid>_<volume>"
  std::vector<std::string> options;
  uint64_t page_size = 0;  // of a hugetlbfs; 0: it is a tmpfs
  // What the container has of it (subPath), from its top down; none: all.
  struct Part {
    std::string name;
    uint32_t mode = 0;  // with the type
    uint32_t uid = 0;
    uint32_t gid = 0;
  };
  std::vector<Part> parts{};
};

// Whether a kubelet's emptyDir, or a subPath of one, may be at a path. Pure.
bool MayBeEmptyDir(const std::string& source);

// Those of a container's binds that are emptyDirs with `medium: Memory` or `HugePages`. A kubelet
// (1.33, pkg/volume/emptydir/empty_dir.go) mounts a tmpfs or a hugetlbfs for one at
// <root>/pods/<pod uid>/volumes/kubernetes.io~empty-dir/<volume>, with the volume's limit as its
// size. For a subPath it binds that part to <root>/pods/<pod uid>/volume-subpaths/<volume>/
// <container>/<index> (pkg/volume/util/subpath/subpath_linux.go). FAILED_PRECONDITION names a mount
// of a part that cannot be had. Blocks.
absl::StatusOr<std::vector<GuestVolume>> FindGuestVolumes(const std::vector<HostBind>& binds);

}  // namespace magnetar::daemon
