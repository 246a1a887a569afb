#pragma once

#include <cstdint>

namespace magnetar::guest {

enum class ClockAction { kNone, kSlew, kStep };

// How a clock that is `offset_ns` behind (negative: ahead) is brought right: what
// the way of the message may account for is left alone, up to a second is
// slewed, more is a step (a paused or cloned VM).
ClockAction DecideClock(int64_t offset_ns);

// Brings CLOCK_REALTIME to the host's. Touches no file and takes no lock.
void AdjustClock(int64_t host_time_ns);

// Sets it at once, however little it is off: for as long as nothing runs that a step could
// disturb. Slewing takes half an hour for a second. One thread.
void StepClock(int64_t host_time_ns);

// Whether StepClock() sets a clock that is so far off, at the first message or at a later one. Of
// several the one that came soonest counts, since each is late by its way: after the first it goes
// back only by more than a second.
bool MustStep(int64_t offset_ns, bool first);

}  // namespace magnetar::guest
