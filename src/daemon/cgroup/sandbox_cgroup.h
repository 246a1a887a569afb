#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cgroups/v2_metrics.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// Limits of a whole sandbox; 0 means none.
struct SandboxLimits {
  uint64_t memory_bytes = 0;
  uint64_t cpu_shares = 0;   // v1 unit, converted for v2
  int64_t cpu_quota_us = 0;
  uint64_t cpu_period_us = 0;
  uint64_t pids = 0;
};

// The host's cgroups, v1, hybrid or v2: a child `magnetar-<id>` of the pod's
// cgroup_parent in every hierarchy that is mounted (systemd form
// "kubepods-pod1.slice" or cgroupfs form "/kubepods/pod1"; empty: "/magnetar").
// The mount point is a parameter, so that tests use a fake tree. Calls block.
class CgroupManager {
 public:
  virtual ~CgroupManager() = default;
  // Makes the cgroup (and its parents) and returns opened cgroup.procs files,
  // one for each hierarchy, into which a process may write "0".
  virtual absl::StatusOr<std::vector<UniqueFd>> Create(const std::string& cgroup_parent,
                                                       const std::string& sandbox_id,
                                                       const SandboxLimits& limits) = 0;
  virtual absl::Status Update(const std::string& cgroup_parent, const std::string& sandbox_id,
                              const SandboxLimits& limits) = 0;
  // Counters in v2's form, whatever the host has.
  virtual absl::StatusOr<io::containerd::cgroups::v2::Metrics> Metrics(
      const std::string& cgroup_parent, const std::string& sandbox_id) = 0;
  // Kills what is left inside and removes it; an absent one is fine. Parents
  // that this made and that are empty go too.
  virtual absl::Status Remove(const std::string& cgroup_parent, const std::string& sandbox_id) = 0;
};

}  // namespace magnetar::daemon
