#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "src/daemon/cgroup/sandbox_cgroup.h"
#include "src/daemon/config/config.h"
#include "src/daemon/containerd/client.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/sandbox/agent_client.h"
#include "src/daemon/sandbox/supervisor_client.h"
#include "src/daemon/storage/container_storage.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

// The directory that a sandbox's file server exports: a mount point of its own
// with shared propagation, so that mounts made below it later reach the file
// server's namespace and nobody else's. Calls block.
class SharedDirectory {
 public:
  virtual ~SharedDirectory() = default;
  virtual absl::Status Make(const std::string& path) = 0;
  // An absent one is fine.
  virtual absl::Status Remove(const std::string& path) = 0;
};

std::unique_ptr<SharedDirectory> NewSharedDirectory();

// Uids for VMMs, one for each. Thread-safe.
class UidPool {
 public:
  UidPool(uint32_t base, uint32_t count) : base_(base), count_(count) {}
  absl::StatusOr<uint32_t> Take();
  // Of a sandbox that was found again.
  void Reserve(uint32_t uid);
  void Give(uint32_t uid);

 private:
  const uint32_t base_;
  const uint32_t count_;
  std::mutex mutex_;
  std::set<uint32_t> used_;
};

// What sandboxes need of the world: each an interface, so that tests have a world
// in memory. Everything outlives every sandbox.
struct Environment {
  Config config;
  asio::io_context* io = nullptr;
  asio::thread_pool* blocking = nullptr;
  CgroupManager* cgroups = nullptr;
  NetworkManager* network = nullptr;
  ContainerStorage* storage = nullptr;
  ContainerdClient* containerd = nullptr;
  SupervisorLauncher* supervisors = nullptr;
  GuestDialer* guests = nullptr;
  SharedDirectory* shared = nullptr;
  UidPool* uids = nullptr;
  const vmm::Driver* driver = nullptr;
  vmm::TransportKind transport = vmm::TransportKind::kMux;
};

}  // namespace magnetar::daemon
