#pragma once

#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "containerd/types.pb.h"
#include "magnetar/agent.pb.h"
#include "magnetar/async_mutex.h"
#include "magnetar/child_process.h"
#include "magnetar/co.h"
#include "src/daemon/storage/requested_device.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

// One thing that was made on the host for a container, as the journal keeps it.
// A step is written to the journal before it is done and undone in reverse order.
struct StorageStep {
  enum class Kind {
    kMount,
    kDisk,        // the container's own
    kVolumeDisk,  // one that containers of the sandbox share is attached
    kVolumeUse,   // it is attached, and the container uses it
  } kind;
  std::string container_id;
  std::string path;    // kMount: mount point below the sandbox's shared directory
  std::string source;  // of a disk: file or device on the host
  std::string serial;  // of a disk
};

// A sandbox, as its storage sees it. All pointers outlive the calls.
struct SandboxStorage {
  std::string sandbox_id;
  std::string directory;         // run directory of the sandbox
  std::string shared_directory;  // what the file server exports
  // The file server, in whose mount namespace its mounts are made; none: there is none (any more).
  // Empty: they are made in the daemon's namespace. Called on the executor of the coroutine.
  std::function<std::optional<ProcessIdentity>()> file_server;
  vmm::Vm* vm = nullptr;
  asio::thread_pool* blocking = nullptr;
  // Persist: before the step is done, and after it was undone. Called on the executor of
  // the coroutine that prepares or releases.
  std::function<absl::Status(const StorageStep&)> journal_add;
  std::function<absl::Status(const StorageStep&)> journal_remove;
  // What the journal holds, in the order of adding: the one truth about what there is to undo. A
  // step whose journal_add failed may be in it; undoing what was never done does no harm.
  std::function<std::vector<StorageStep>()> journal_steps;
  // Storage's own: held while disks that containers share are attached or detached.
  std::shared_ptr<AsyncMutex> volumes{};
};

struct ContainerRequest {
  std::string container_id;
  std::string spec_json;                         // as containerd has it
  std::vector<containerd::types::Mount> rootfs;  // as RootfsMounts (rootfs_source.h) gives them
  // Files that the guest itself holds and that CRI would have bound in:
  // hostname, hosts, resolv.conf, shm. Guest paths; empty: none.
  std::string guest_hostname, guest_hosts, guest_resolv_conf, guest_shm;
  bool pod_shares_pids = true;   // see SpecRequest
  std::string pid_namespace_of;  // as PreparedContainer has it
  // Of CRI's configuration.
  std::vector<RequestedDevice> devices{};
  std::vector<HugePageLimit> huge_page_limits{};
};

// Brings a container's root filesystem and mounts to the guest.
//
// Errors: INVALID_ARGUMENT or FAILED_PRECONDITION names the mount ("mounts[3] /run/docker.sock:
// sockets cannot be shared with a VM"); on any error everything is undone.
//
// Threads: all calls for one sandbox on its strand; those for different containers may
// overlap. Prepare and Release run to their end even if the caller is cancelled, so that
// nothing is left half done: whoever gives up a Prepare releases the container afterwards.
class ContainerStorage {
 public:
  virtual ~ContainerStorage() = default;
  static std::unique_ptr<ContainerStorage> Create();

  // The rewritten spec and the storages for the guest. What an earlier Prepare of the
  // same container has left is undone first.
  virtual Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(SandboxStorage& sandbox,
                                                                   ContainerRequest request) = 0;
  // Undoes all steps of a container, as far as it can; none is fine. The first error
  // is returned, and its step stays in the journal.
  virtual Co<absl::Status> Release(SandboxStorage& sandbox, std::string container_id) = 0;
  // Undoes all mounts below a sandbox's shared directory, but not its own, without a VM:
  // blocks, and needs no journal.
  virtual absl::Status UnmountAll(const std::string& shared_directory) = 0;
};

}  // namespace magnetar::daemon
