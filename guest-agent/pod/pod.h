#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "guest-agent/pod/pod_memory.h"
#include "guest-agent/storage/share_stream.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

struct PodPaths {
  std::string pod = "/run/magnetar/pod";
  std::string shared = "/run/magnetar/shared";
  std::string proc_sys = "/proc/sys";
  std::string meminfo = "/proc/meminfo";
  std::string cgroup = "/sys/fs/cgroup/pod";
  std::string agent_binary = "/sbin/vmm-task";
};

// The pod: what its containers share. Setup() blocks and is called on the agent's
// pool, one call at a time; the getters are safe from everywhere.
class Pod {
 public:
  // `configure_network` is network/network.h's, or a fake. `share_stream` outlives this.
  Pod(PodPaths paths, std::function<absl::Status(const agent::v1::Network&)> configure_network,
      ShareStream* share_stream)
      : paths_(std::move(paths)),
        configure_network_(std::move(configure_network)),
        share_stream_(share_stream),
        memory_(paths_.cgroup) {}
  Pod(const Pod&) = delete;
  Pod& operator=(const Pod&) = delete;

  // Repeating it with the same request changes nothing. FAILED_PRECONDITION: it is
  // another sandbox's. Other errors name the step.
  absl::Status Setup(const agent::v1::SetupSandboxRequest& request);

  // Of its containers.
  PodMemory& memory() { return memory_; }

  // Empty and 0 until Setup() has succeeded.
  std::string sandbox_id() const;
  uint32_t vmm_pid() const { return vmm_pid_; }

  // Keeps a pid namespace for the containers that share one, held open by a
  // bind mount at ns/pid and by a process that reaps there. On the main thread.
  absl::Status HoldPidNamespace();

 private:
  absl::Status SetHostname(const std::string& hostname);
  absl::Status WriteFiles(const agent::v1::SetupSandboxRequest& request);
  absl::Status MountShared(const agent::v1::SetupSandboxRequest& request);
  absl::Status MountShm(uint64_t size_bytes);

  const PodPaths paths_;
  const std::function<absl::Status(const agent::v1::Network&)> configure_network_;
  ShareStream* const share_stream_;
  PodMemory memory_;
  mutable std::mutex mutex_;
  std::string sandbox_id_;
  std::atomic<uint32_t> vmm_pid_ = 0;
  pid_t pause_pid_ = 0;
};

// Writes "net.ipv4.ip_forward" = "1" below `proc_sys`. INVALID_ARGUMENT: a name
// that is no sysctl's.
absl::Status WriteSysctl(const std::string& proc_sys, const std::string& name,
                         const std::string& value);

// Bytes of a field of /proc/meminfo, such as "MemTotal".
absl::StatusOr<uint64_t> ReadMeminfo(const std::string& meminfo, absl::string_view field);

// Stirs bytes into the kernel's random pool and credits them.
absl::Status AddEntropy(const std::string& bytes);

}  // namespace magnetar::guest
