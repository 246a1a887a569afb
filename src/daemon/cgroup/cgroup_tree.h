#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "src/daemon/cgroup/layout.h"

// Directories of one hierarchy. Paths are relative to its mount point, as layout.h gives them.
namespace magnetar::daemon {

// Makes `path` and its missing parents. What it makes is marked by an extended attribute, so that
// RemovePath knows which parents were its own, also after a restart.
// v1: a new cpuset gets its parent's CPUs and memory nodes, without which it takes no process.
// v2: enables `controllers` for the children of every parent; one that cannot be enabled is an
// error only if `required` holds it.
absl::Status MakePath(const Hierarchy& hierarchy, const std::string& path,
                      const std::vector<std::string>& controllers,
                      const std::vector<std::string>& required);

// Removes `path` with everything below it, and then its parents for as long as they are marked
// and empty. No process may be left inside (FAILED_PRECONDITION). An absent one is fine.
absl::Status RemovePath(const Hierarchy& hierarchy, const std::string& path);

}  // namespace magnetar::daemon
