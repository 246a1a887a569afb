#pragma once

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

// Named points at which tests make the daemon die or fail. Off unless the
// configuration's [debug] failpoints names one: "name" kills the process with
// SIGKILL there, "name=error" makes the step fail with INTERNAL, "name=stop" stops
// the process with SIGSTOP, once, until somebody continues it: time to kill another.
namespace magnetar {
namespace internal {

inline std::atomic<const std::set<std::string, std::less<>>*>& ActiveFailpoints() {
  static std::atomic<const std::set<std::string, std::less<>>*> active{nullptr};
  return active;
}

}  // namespace internal

// Called once, before other threads run; the set lives as long as the process.
inline void SetFailpoints(const std::vector<std::string>& names) {
  if (names.empty()) return;
  auto set = std::make_unique<std::set<std::string, std::less<>>>(names.begin(), names.end());
  internal::ActiveFailpoints().store(set.release(), std::memory_order_release);
}

// OK unless the point is set to fail. Any thread.
[[nodiscard]] inline absl::Status Failpoint(std::string_view name) {
  const auto* active = internal::ActiveFailpoints().load(std::memory_order_acquire);
  if (active == nullptr) return absl::OkStatus();
  if (active->count(name) != 0) ::kill(::getpid(), SIGKILL);
  if (active->count(absl::StrCat(std::string(name), "=error")) != 0) {
    return absl::InternalError(absl::StrCat("failpoint ", std::string(name)));
  }
  if (active->count(absl::StrCat(std::string(name), "=stop")) != 0) {
    static std::atomic<bool> stopped{false};
    // To this thread, which then goes no further; all others stop with it.
    if (!stopped.exchange(true)) ::raise(SIGSTOP);
  }
  return absl::OkStatus();
}

}  // namespace magnetar
