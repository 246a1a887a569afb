#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "src/daemon/cgroup/sandbox_cgroup.h"
#include "src/daemon/config/config.h"
#include "src/daemon/containerd/client.h"
#include "src/daemon/metrics/metrics.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/sandbox/agent_client.h"
#include "src/daemon/sandbox/clock.h"
#include "src/daemon/sandbox/shared_directory.h"
#include "src/daemon/sandbox/supervisor_client.h"
#include "src/daemon/storage/container_storage.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

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
  // For what opens paths of containers: one on a dead file server blocks for ever, and
  // must not keep pods from being stopped.
  asio::thread_pool* storage_pool = nullptr;
  const Clock* clock = SystemClock();
  DaemonMetrics* metrics = NoMetrics();
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
