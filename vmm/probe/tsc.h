#pragma once

#include <cstdint>

namespace magnetar::vmm {

// Frequency of this machine's time stamp counter in kHz, measured against
// CLOCK_MONOTONIC_RAW in 20 ms; 0 on a processor without one. Blocks for that time.
//
// A guest under TCG reads the host's counter, but calibrates it against emulated
// timers: on a busy host it can be off by a factor, and then its clock is.
uint32_t MeasureTscKhz();

}  // namespace magnetar::vmm
