#pragma once

#include <chrono>
#include <cstdint>
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
  uint64_t cpu_shares = 0;  // v1 unit, converted for v2
  int64_t cpu_quota_us = 0;
  uint64_t cpu_period_us = 0;
  uint64_t pids = 0;
};

class SystemdScopes;

// Where the host's cgroups are; tests use a fake tree.
struct CgroupOptions {
  std::string mount_point = "/sys/fs/cgroup";
  std::string mountinfo = "/proc/self/mountinfo";
  // What Remove may spend on ending the processes that are left.
  std::chrono::milliseconds kill_limit = std::chrono::seconds(10);
  // There if systemd runs; then its slices are asked for scopes (systemd_scopes.h).
  std::string systemd_directory = "/run/systemd/system";
  std::shared_ptr<SystemdScopes> scopes = nullptr;  // nullptr: systemd's own, over D-Bus
};

// The host's cgroups, v1, hybrid or v2: a child `magnetar-<id>` of the pod's
// cgroup_parent in every hierarchy that is mounted (systemd form
// "kubepods-pod1.slice" or cgroupfs form "/kubepods/pod1"; empty: "/magnetar"). Where systemd
// runs, a slice's child is a scope `magnetar-<id>.scope` that systemd delegates.
// Calls block and may overlap for different sandboxes.
//
// Errors: INVALID_ARGUMENT for an id or a cgroup_parent that is none; FAILED_PRECONDITION for a
// limit whose controller v2 does not let into the parent. A limit whose controller v1 has
// not mounted is dropped.
class CgroupManager {
 public:
  virtual ~CgroupManager() = default;
  // Makes the cgroup (and its parents), which may exist, and returns opened cgroup.procs files,
  // one for each hierarchy, into which a process may write "0".
  virtual absl::StatusOr<std::vector<UniqueFd>> Create(const std::string& cgroup_parent,
                                                       const std::string& sandbox_id,
                                                       const SandboxLimits& limits) = 0;
  virtual absl::Status Update(const std::string& cgroup_parent, const std::string& sandbox_id,
                              const SandboxLimits& limits) = 0;
  // Counters in v2's form, whatever the host has. NOT_FOUND if the sandbox has no cgroup.
  virtual absl::StatusOr<io::containerd::cgroups::v2::Metrics> Metrics(
      const std::string& cgroup_parent, const std::string& sandbox_id) = 0;
  // The least memory that a cgroup above the sandbox's own is limited to, the pod's own included;
  // 0: none is.
  virtual absl::StatusOr<uint64_t> MemoryLimitAbove(const std::string& cgroup_parent,
                                                    const std::string& sandbox_id) = 0;
  // Kills what is left inside and removes it; an absent one is fine, and one that could not be.
  // Parents that this made and that are empty go too.
  virtual absl::Status Remove(const std::string& cgroup_parent, const std::string& sandbox_id) = 0;
};

// Reads the layout once. FAILED_PRECONDITION if there are no cgroups.
absl::StatusOr<std::unique_ptr<CgroupManager>> CreateCgroupManager(
    const CgroupOptions& options = {});

}  // namespace magnetar::daemon
