#include "guest-agent/transport/clock.h"

#include <sys/timex.h>

#include <cstdlib>
#include <ctime>
#include <utility>

namespace magnetar::guest {
namespace {

constexpr int64_t kSecond = 1000000000;
constexpr int64_t kStepBeyond = kSecond;
constexpr int64_t kIgnoreBelow = 2000000;

int64_t OffsetFrom(int64_t host_time_ns) {
  timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  return host_time_ns - (int64_t{now.tv_sec} * kSecond + now.tv_nsec);
}

void Step(int64_t host_time_ns) {
  const timespec right = {static_cast<time_t>(host_time_ns / kSecond),
                          static_cast<long>(host_time_ns % kSecond)};
  ::clock_settime(CLOCK_REALTIME, &right);
}

}  // namespace

ClockAction DecideClock(int64_t offset_ns) {
  const int64_t size = std::llabs(offset_ns);
  if (size > kStepBeyond) return ClockAction::kStep;
  return size < kIgnoreBelow ? ClockAction::kNone : ClockAction::kSlew;
}

bool MustStep(int64_t offset_ns, bool first) {
  const ClockAction action = DecideClock(offset_ns);
  if (action == ClockAction::kSlew) return first || offset_ns > 0;
  return action == ClockAction::kStep;
}

void AdjustClock(int64_t host_time_ns) {
  if (host_time_ns <= 0) return;
  const int64_t offset = OffsetFrom(host_time_ns);
  switch (DecideClock(offset)) {
    case ClockAction::kNone:
      return;
    case ClockAction::kSlew: {
      timex change = {};
      change.modes = ADJ_OFFSET_SINGLESHOT;
      change.offset = static_cast<long>(offset / 1000);
      ::adjtimex(&change);
      return;
    }
    case ClockAction::kStep:
      Step(host_time_ns);
      return;
  }
}

void StepClock(int64_t host_time_ns) {
  if (host_time_ns <= 0) return;
  static bool is_set = false;
  const bool first = !std::exchange(is_set, true);
  if (MustStep(OffsetFrom(host_time_ns), first)) Step(host_time_ns);
}

}  // namespace magnetar::guest
