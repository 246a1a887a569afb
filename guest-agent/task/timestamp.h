#pragma once

#include <cstdint>
#include <ctime>

#include "wire/wkt.pb.h"

namespace magnetar::guest {

// From nanoseconds since the epoch.
inline wire::Timestamp ToTimestamp(int64_t ns) {
  constexpr int64_t kSecond = 1000000000;
  wire::Timestamp out;
  out.set_seconds(ns / kSecond);
  out.set_nanos(static_cast<int32_t>(ns % kSecond));
  return out;
}

inline int64_t NowNs() {
  timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

}  // namespace magnetar::guest
