#include "vmm/probe/tsc.h"

#include <ctime>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace magnetar::vmm {

#if defined(__x86_64__)
namespace {
int64_t RawNanoseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}
}  // namespace

uint32_t MeasureTscKhz() {
  constexpr int64_t kSpanNanoseconds = 20'000'000;
  const int64_t start = RawNanoseconds();
  const uint64_t first = __rdtsc();
  int64_t elapsed = 0;
  while (elapsed < kSpanNanoseconds) elapsed = RawNanoseconds() - start;
  const uint64_t ticks = __rdtsc() - first;
  return static_cast<uint32_t>(ticks * 1'000'000 / static_cast<uint64_t>(elapsed));
}
#else
uint32_t MeasureTscKhz() { return 0; }
#endif

}  // namespace magnetar::vmm
