#include "src/daemon/sandbox/sizes.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {
namespace {

using nlohmann::json;
using runtime::v1::LinuxContainerResources;

// Machines come in steps of this.
constexpr uint64_t kMachineStep = 2 * kMebibyte;
// Memory that can be added is one piece of the guest's address space; Linux manages it in blocks.
constexpr uint64_t kPlaceStep = 128 * kMebibyte;
constexpr uint32_t kMostVcpus = 255;
// The VMM's own memory and its helpers'.
constexpr uint64_t kVmmBytes = 256 * kMebibyte;
// Of the VMM (one for each vCPU, and at most 64 that do blocking work), of the file server (at most
// 64 for each queue), and the supervisor.
constexpr uint64_t kVmmThreads = 1024;
// So that sums of them cannot overflow.
constexpr uint64_t kMostBytes = uint64_t{1} << 50;
constexpr uint64_t kMostMillicpus = uint64_t{1} << 30;

uint64_t RoundUp(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

uint64_t Millicpus(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return 0;
  const double cpus = static_cast<double>(quota) / static_cast<double>(period);
  return static_cast<uint64_t>(std::min(cpus * 1000 + 0.5, static_cast<double>(kMostMillicpus)));
}

uint32_t Vcpus(uint64_t millicpus) {
  return static_cast<uint32_t>(std::clamp<uint64_t>((millicpus + 999) / 1000, 1, kMostVcpus));
}

LinuxContainerResources PodResources(const Record& record) {
  LinuxContainerResources out;
  if (record.pod_updated) {
    out.ParseFromString(record.pod_resources);
    return out;
  }
  runtime::v1::PodSandboxConfig pod;
  if (pod.ParseFromString(record.pod_config)) out = pod.linux().resources();
  return out;
}

LinuxContainerResources PodOverhead(const Record& record) {
  LinuxContainerResources out;
  if (record.pod_updated) {
    out.ParseFromString(record.pod_overhead);
    return out;
  }
  runtime::v1::PodSandboxConfig pod;
  if (pod.ParseFromString(record.pod_config)) out = pod.linux().overhead();
  return out;
}

// Of what the pod's cgroup may hold, what the VMM and its helpers have: the RuntimeClass's overhead
// is theirs, except for what the guest has of it.
uint64_t AroundGuest(const Record& record, const Config::Sizing& sizing) {
  const int64_t overhead = PodOverhead(record).memory_limit_in_bytes();
  if (overhead <= 0) return kVmmBytes;
  const auto bytes = static_cast<uint64_t>(overhead);
  return bytes - std::min(bytes, sizing.overhead_mib * kMebibyte);
}

uint64_t BootMemory(const Record& record) {
  return record.boot_memory_bytes != 0 ? record.boot_memory_bytes : record.memory_bytes;
}

// Whether the guest that runs knows how.
bool CanResize(const Record& record) { return HasFeature(record, "resize"); }

// Before what the VM can have is looked at.
MachineSize Desired(const LinuxContainerResources& pod, const Record& record,
                    const Config::Sizing& sizing) {
  MachineSize size = SizeOf(pod, sizing);
  uint64_t memory = 0;
  uint64_t millicpus = 0;
  for (const ContainerLimits& limits : record.container_limits) {
    memory += std::min(limits.memory_bytes, kMostBytes);
    millicpus += std::min(limits.millicpus, kMostMillicpus);
  }
  if (memory > 0) {
    size.memory_bytes = std::max(size.memory_bytes,
                                 RoundUp(memory + sizing.overhead_mib * kMebibyte, kMachineStep));
  }
  if (millicpus > 0) size.vcpus = std::max(size.vcpus, Vcpus(millicpus));
  return size;
}

// The member of an object, or null.
const json& At(const json& object, const char* key) {
  static const json kNull;
  if (!object.is_object()) return kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

int64_t Number(const json& value) {
  if (!value.is_number_integer()) return 0;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::numeric_limits<int64_t>::max();
  }
  return value.get<int64_t>();
}

}  // namespace

MachineSize SizeOf(const LinuxContainerResources& pod, const Config::Sizing& sizing) {
  MachineSize size;
  size.vcpus = sizing.vcpus;
  const uint64_t millicpus = Millicpus(pod.cpu_quota(), pod.cpu_period());
  if (millicpus > 0) size.vcpus = Vcpus(millicpus);
  uint64_t memory = sizing.memory_mib * kMebibyte;
  if (pod.memory_limit_in_bytes() > 0) {
    memory = static_cast<uint64_t>(pod.memory_limit_in_bytes()) + sizing.overhead_mib * kMebibyte;
    memory = std::max(memory, kLeastMemoryMib * kMebibyte);
  }
  size.memory_bytes = RoundUp(memory, kMachineStep);
  return size;
}

MachineSize LargerOf(const MachineSize& a, const MachineSize& b) {
  return {.vcpus = std::max(a.vcpus, b.vcpus),
          .memory_bytes = std::max(a.memory_bytes, b.memory_bytes)};
}

MachineSize LargestSize(const MachineSize& boot, const Config::Sizing& sizing,
                        uint64_t host_memory_bytes) {
  MachineSize largest = boot;
  largest.vcpus = std::max(boot.vcpus, sizing.max_vcpus);
  const uint64_t most =
      sizing.max_memory_mib != 0 ? sizing.max_memory_mib * kMebibyte : host_memory_bytes;
  if (most > boot.memory_bytes) {
    largest.memory_bytes += (most - boot.memory_bytes) / kPlaceStep * kPlaceStep;
  }
  return largest;
}

ContainerLimits LimitsOfSpec(const std::string& container_id, const std::string& spec_json) {
  ContainerLimits limits;
  limits.container_id = container_id;
  const json spec = json::parse(spec_json, nullptr, /*allow_exceptions=*/false);
  const json& resources = At(At(spec, "linux"), "resources");
  limits.memory_bytes =
      static_cast<uint64_t>(std::max<int64_t>(Number(At(At(resources, "memory"), "limit")), 0));
  const json& cpu = At(resources, "cpu");
  limits.millicpus = Millicpus(Number(At(cpu, "quota")), Number(At(cpu, "period")));
  return limits;
}

MachineSize WantedSize(const Record& record, const Config& config, uint64_t memory_limit_above) {
  if (!CanResize(record)) return {.vcpus = record.vcpus, .memory_bytes = record.memory_bytes};
  const MachineSize desired =
      Desired(PodResources(record), record, config.SizingOf(record.runtime_handler));
  MachineSize size{.vcpus = record.vcpus, .memory_bytes = BootMemory(record)};
  // Processors are never taken away: the quotas of both cgroups keep what is not to be used.
  size.vcpus = std::max(size.vcpus, std::min(desired.vcpus, record.max_vcpus));
  const uint64_t most = std::min(std::max(record.max_memory_bytes, size.memory_bytes),
                                 RoomFor(record, config, memory_limit_above));
  if (desired.memory_bytes > size.memory_bytes && most > size.memory_bytes) {
    const uint64_t more = RoundUp(desired.memory_bytes - size.memory_bytes, vmm::kMemoryStep);
    const uint64_t room = (most - size.memory_bytes) / vmm::kMemoryStep * vmm::kMemoryStep;
    size.memory_bytes += std::min(more, room);
  }
  return size;
}

uint64_t RoomFor(const Record& record, const Config& config, uint64_t memory_limit_above) {
  if (memory_limit_above == 0) return std::numeric_limits<uint64_t>::max();
  const uint64_t around = AroundGuest(record, config.SizingOf(record.runtime_handler));
  return memory_limit_above - std::min(memory_limit_above, around);
}

absl::Status CheckFits(const Record& record, const LinuxContainerResources& pod,
                       const Config& config) {
  const MachineSize size = SizeOf(pod, config.SizingOf(record.runtime_handler));
  const bool can = CanResize(record);
  const uint32_t most_vcpus = can ? std::max(record.max_vcpus, record.vcpus) : record.vcpus;
  if (size.vcpus > most_vcpus) {
    return absl::FailedPreconditionError(absl::StrCat(
        "Resources.cpu_quota: needs ", size.vcpus,
        " vCPUs, and the VM was started to have at most ", most_vcpus, " (vm.max_vcpus)"));
  }
  const uint64_t most =
      can ? std::max(record.max_memory_bytes, BootMemory(record)) : record.memory_bytes;
  if (size.memory_bytes > most) {
    return absl::FailedPreconditionError(absl::StrCat(
        "Resources.memory_limit_in_bytes: needs a VM of ", size.memory_bytes / kMebibyte,
        " MiB, and it was started to have at most ", most / kMebibyte, " MiB (vm.max_memory_mib)"));
  }
  return absl::OkStatus();
}

SandboxLimits LimitsOf(const LinuxContainerResources& resources,
                       const LinuxContainerResources& overhead, uint64_t vm_memory_bytes,
                       const Config::Sizing& sizing) {
  SandboxLimits limits;
  // Also of a pod without a limit: the guest's memory has its size, but what a guest can make its
  // file server hold, in the host's kernel too, has none.
  limits.memory_bytes = vm_memory_bytes + sizing.overhead_mib * kMebibyte + kVmmBytes;
  limits.pids = kVmmThreads;
  if (resources.memory_limit_in_bytes() > 0) {
    // Around the guest's memory there is the VMM's own.
    const uint64_t extra = std::max<uint64_t>(
        static_cast<uint64_t>(std::max<int64_t>(overhead.memory_limit_in_bytes(), 0)),
        sizing.overhead_mib * kMebibyte);
    limits.memory_bytes = std::max(static_cast<uint64_t>(resources.memory_limit_in_bytes()) + extra,
                                   vm_memory_bytes) +
                          kVmmBytes;
  }
  limits.cpu_shares = static_cast<uint64_t>(std::max<int64_t>(resources.cpu_shares(), 0) +
                                            std::max<int64_t>(overhead.cpu_shares(), 0));
  if (resources.cpu_quota() > 0 && resources.cpu_period() > 0) {
    limits.cpu_quota_us = resources.cpu_quota() + std::max<int64_t>(overhead.cpu_quota(), 0);
    limits.cpu_period_us = static_cast<uint64_t>(resources.cpu_period());
  }
  return limits;
}

SandboxLimits LimitsOf(const Record& record, const Config& config) {
  return LimitsOf(PodResources(record), PodOverhead(record),
                  std::max({record.memory_bytes, record.wanted_memory_bytes,
                            record.resizing ? record.granted_memory_bytes : 0}),
                  config.SizingOf(record.runtime_handler));
}

}  // namespace magnetar::daemon
