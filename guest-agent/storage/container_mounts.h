#pragma once

#include <mutex>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "guest-agent/storage/huge_pages.h"
#include "magnetar/agent.pb.h"
#include "magnetar/mounts.h"

namespace magnetar::guest {

// What a container needs mounted before crun makes it (a fake in tests). Blocking
// calls, made on the agent's pool, one at a time for one container.
class ContainerMounts {
 public:
  virtual ~ContainerMounts() = default;
  // Mounts what the host has prepared, in order; on an error everything is undone but the pod's
  // volumes, which are there until the VM ends.
  virtual absl::Status MountAll(const std::string& container_id,
                                const agent::v1::PreparedContainer& prepared) = 0;
  // Unmounts everything below the container's directory, syncs, and gives its huge pages back.
  // Repeatable.
  virtual absl::Status UnmountAll(const std::string& container_id) = 0;
  // Once the host has taken away what the container had of it. What the kernel still knows of that
  // keeps the host's file systems, and the space of files that are deleted in them.
  virtual void Forget(const std::string& container_id) = 0;
};

struct GuestPaths {
  std::string shared = "/run/magnetar/shared";
  std::string containers = "/run/magnetar/containers";
  std::string volumes = "/run/magnetar/pod/volumes";
  std::string huge_pages = "/sys/kernel/mm/hugepages";
  std::string pod_cgroup = "/sys/fs/cgroup/pod";
};

class KernelContainerMounts : public ContainerMounts {
 public:
  // `memory` outlives it.
  KernelContainerMounts(GuestPaths paths, PodMemory* memory)
      : paths_(std::move(paths)), huge_pages_(paths_.huge_pages, paths_.pod_cgroup, memory) {}
  absl::Status MountAll(const std::string& container_id,
                        const agent::v1::PreparedContainer& prepared) override;
  absl::Status UnmountAll(const std::string& container_id) override;
  void Forget(const std::string& container_id) override;

 private:
  absl::Status MountOne(const std::string& directory, const agent::v1::Storage& storage);
  absl::Status MountAnnounced(const std::string& container_id,
                              const agent::v1::PreparedContainer& prepared);
  absl::Status MountVolume(const std::string& fstype, const std::string& target,
                           const MountOptions& options);
  absl::Status MountPart(const agent::v1::Storage& storage);

  const GuestPaths paths_;
  std::mutex volumes_mutex_;
  HugePagePools huge_pages_;
  std::mutex known_mutex_;
  // Containers whose directories the host had not taken away when that was to be forgotten.
  std::set<std::string> known_;
};

// INVALID_ARGUMENT unless `path` is absolute, below `directory`, and has no "..".
absl::Status CheckBelow(const std::string& path, const std::string& directory);

}  // namespace magnetar::guest
