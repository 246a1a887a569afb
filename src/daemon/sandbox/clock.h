#pragma once

#include <cstdint>

namespace magnetar::daemon {

// CLOCK_REALTIME in nanoseconds.
int64_t RealtimeNs();

// What the sandboxes' own times are taken from.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t RealtimeNs() const = 0;
};

// The machine's; lives as long as the process.
const Clock* SystemClock();

}  // namespace magnetar::daemon
