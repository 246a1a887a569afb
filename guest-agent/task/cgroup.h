#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cgroups/v2_metrics.pb.h"

// Control groups, version 2, of the guest. All calls block for as long as the
// kernel takes; `path` is a cgroup's directory, in tests one of plain files.
// Facts: Documentation/admin-guide/cgroup-v2.rst of Linux 6.1.
namespace magnetar::guest {

// The counters in the form of containerd. Absent controllers leave their
// messages out; NOT_FOUND if the cgroup does not exist.
absl::StatusOr<io::containerd::cgroups::v2::Metrics> ReadCgroupMetrics(const std::string& path);

// Counter `key` of a flat keyed file such as memory.events; 0 if it is absent.
uint64_t ReadCgroupCounter(const std::string& file, absl::string_view key);

// Kills every process in it and below (cgroup.kill). An absent cgroup is fine.
absl::Status KillCgroup(const std::string& path);

// Sends `signal` to every process in it and below. An absent cgroup is fine.
absl::Status SignalCgroup(const std::string& path, int signal);

// Asks for the frozen state; it is reached when cgroup.events says so.
absl::Status SetCgroupFrozen(const std::string& path, bool frozen);

// Pids in it and below.
absl::StatusOr<std::vector<int>> CgroupPids(const std::string& path);

// Delegates every controller that the cgroup has to its children.
absl::Status EnableControllers(const std::string& path);

}  // namespace magnetar::guest
