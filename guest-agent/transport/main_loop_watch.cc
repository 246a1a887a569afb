#include "guest-agent/transport/main_loop_watch.h"

#include <boost/asio/post.hpp>
#include <ctime>

namespace magnetar::guest {
namespace {

int64_t MonotonicNs() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

}  // namespace

uint64_t MainLoopWatch::AgeMs() {
  const int64_t posted = posted_ns_.load();
  const int64_t now = MonotonicNs();
  if (posted != 0) return static_cast<uint64_t>((now - posted) / 1000000);
  posted_ns_ = now;
  asio::post(main_loop_, [this] { posted_ns_ = 0; });
  return 0;
}

}  // namespace magnetar::guest
