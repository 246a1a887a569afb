#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cri/runtime.pb.h"
#include "src/daemon/config/config.h"
#include "src/daemon/sandbox/sizes.h"

// What a pod asks of its VM by annotations: "io.magnetar.vm.vcpus" and "io.magnetar.vm.memory_mib",
// where the configuration lets it. No state, no I/O but HostMemory.
namespace magnetar::daemon {

inline constexpr char kMemoryAnnotation[] = "io.magnetar.vm.memory_mib";

// 0 where the pod asks for nothing. PERMISSION_DENIED if the configuration does not let it ask;
// INVALID_ARGUMENT for what is no number, or more than a pod may grow to, or unknown. Both name
// the annotation.
absl::StatusOr<MachineSize> AskedSize(const runtime::v1::PodSandboxConfig& pod,
                                      const Config::Sizing& sizing, uint64_t host_memory_bytes);

// The host's memory in bytes.
uint64_t HostMemory();

}  // namespace magnetar::daemon
