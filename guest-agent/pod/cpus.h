#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace magnetar::guest {

// Starts processors that were added to a running VM, until `count` run; those that are on their way
// are waited for. Blocks. DEADLINE_EXCEEDED says how many there are.
// Facts: Linux 6.1 drivers/base/cpu.c (cpu<N>/online, which cpu0 may not have; the kernel starts
// none by itself).
absl::Status OnlineCpus(uint32_t count, std::chrono::nanoseconds timeout,
                        const std::string& sys_cpu = "/sys/devices/system/cpu");

}  // namespace magnetar::guest
