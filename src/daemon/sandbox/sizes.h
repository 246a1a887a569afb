#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "cri/runtime.pb.h"
#include "src/daemon/cgroup/sandbox_cgroup.h"
#include "src/daemon/config/config.h"
#include "src/daemon/sandbox/record.h"

// How large a VM is, and the cgroup around it: from the limits of a pod and of its containers.
// No state, no I/O.
namespace magnetar::daemon {

inline constexpr uint64_t kMebibyte = 1 << 20;
// A VM with less does not boot.
inline constexpr uint64_t kLeastMemoryMib = 128;

struct MachineSize {
  uint32_t vcpus = 1;
  uint64_t memory_bytes = 0;
};

// A pod's limits become the VM's size, `vm.overhead_mib` for the guest's own needs added; without
// limits the configured default. What a RuntimeClass's overhead adds to the pod's cgroup beyond
// that is left to the VMM and its helpers, which live in it.
MachineSize SizeOf(const runtime::v1::LinuxContainerResources& pod, const Config::Sizing& sizing);

MachineSize LargerOf(const MachineSize& a, const MachineSize& b);

// How far a VM of this size may grow: `host_memory_bytes` bounds it where the configuration does
// not.
MachineSize LargestSize(const MachineSize& boot, const Config::Sizing& sizing,
                        uint64_t host_memory_bytes);

// The limits in an OCI runtime spec as containerd has it; none where it holds nonsense, at which
// the container will fail.
ContainerLimits LimitsOfSpec(const std::string& container_id, const std::string& spec_json);

// What the VM is to have now: enough for the pod's limits and for all of its containers', within
// what it can have, and within `memory_limit_above` (CgroupManager::MemoryLimitAbove; 0: none). The
// limits of a pod's containers may add up to more than the pod's own: then it is the guest that
// runs out of memory, and kills one process, not the host, which would kill the VM.
MachineSize WantedSize(const Record& record, const Config& config, uint64_t memory_limit_above);

// How much memory a VM may have within `memory_limit_above`, beside what is around the guest;
// the largest number where there is no limit.
uint64_t RoomFor(const Record& record, const Config& config, uint64_t memory_limit_above);

// FAILED_PRECONDITION names the limit that the sandbox's VM cannot grow to.
absl::Status CheckFits(const Record& record, const runtime::v1::LinuxContainerResources& pod,
                       const Config& config);

// The limits of the cgroup around the VMM: never less memory than the VM has, or is about to have,
// whatever the pod's limit has become since it was made.
SandboxLimits LimitsOf(const runtime::v1::LinuxContainerResources& resources,
                       const runtime::v1::LinuxContainerResources& overhead,
                       uint64_t vm_memory_bytes, const Config::Sizing& sizing);
SandboxLimits LimitsOf(const Record& record, const Config& config);

}  // namespace magnetar::daemon
