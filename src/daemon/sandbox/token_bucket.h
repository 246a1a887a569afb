#pragma once

#include <algorithm>
#include <chrono>

namespace magnetar::daemon {

// Limits how often something happens: `burst` times at once, `per_second` in the long run.
// The caller tells the time.
class TokenBucket {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  TokenBucket(double per_second, double burst)
      : per_second_(per_second), burst_(burst), tokens_(burst) {}

  // Takes a token that is there; false, and nothing is taken, if there is none.
  bool TryTake(TimePoint now) {
    Fill(now);
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }

  // Takes a token in any case: how long the caller must wait before it may use it.
  std::chrono::nanoseconds Take(TimePoint now) {
    Fill(now);
    tokens_ -= 1;
    if (tokens_ >= 0) return std::chrono::nanoseconds(0);
    const std::chrono::duration<double> wait(-tokens_ / per_second_);
    return std::chrono::duration_cast<std::chrono::nanoseconds>(wait);
  }

 private:
  void Fill(TimePoint now) {
    if (now <= last_) return;
    const std::chrono::duration<double> passed = now - last_;
    tokens_ = std::min(burst_, tokens_ + passed.count() * per_second_);
    last_ = now;
  }

  const double per_second_;
  const double burst_;
  double tokens_;
  TimePoint last_{};
};

}  // namespace magnetar::daemon
