#include "src/daemon/sandbox/clock.h"

#include <chrono>

namespace magnetar::daemon {
namespace {

class RealClock : public Clock {
 public:
  int64_t RealtimeNs() const override { return daemon::RealtimeNs(); }
};

}  // namespace

int64_t RealtimeNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

const Clock* SystemClock() {
  static const auto* const kClock = new RealClock;
  return kClock;
}

}  // namespace magnetar::daemon
