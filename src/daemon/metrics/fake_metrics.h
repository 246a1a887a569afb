#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "src/daemon/metrics/metrics.h"

namespace magnetar::daemon {

// Notes what it is told, each with how often: "start OK", "phase ready OK", "rpc Create NOT_FOUND",
// "vm hung".
class FakeMetrics : public DaemonMetrics {
 public:
  void StartEnded(const absl::Status& status, Clock::time_point since) override {
    Note(absl::StrCat("start ", absl::StatusCodeToString(status.code())), since);
  }
  void StartPhaseEnded(StartPhase phase, const absl::Status& status,
                       Clock::time_point since) override {
    static constexpr const char* kNames[] = {"host", "network", "launch", "ready", "setup"};
    Note(absl::StrCat("phase ", kNames[static_cast<int>(phase)], " ",
                      absl::StatusCodeToString(status.code())),
         since);
  }
  void PrepareEnded(const absl::Status& status, Clock::time_point since) override {
    Note(absl::StrCat("prepare ", absl::StatusCodeToString(status.code())), since);
  }
  void TeardownEnded(Clock::time_point since) override { Note("teardown", since); }
  void TeardownFailed(std::string_view what) override {
    Note("teardown failed " + std::string(what), Clock::now());
  }
  void HeartbeatMissed() override { Note("heartbeat missed", Clock::now()); }
  void VmEnded(VmEnd end) override {
    static constexpr const char* kNames[] = {"asked", "guest", "died", "hung", "unkillable"};
    Note(absl::StrCat("vm ", kNames[static_cast<int>(end)]), Clock::now());
  }
  void RpcEnded(std::string_view method, absl::StatusCode code, Clock::time_point since) override {
    Note(absl::StrCat("rpc ", std::string(method), " ", absl::StatusCodeToString(code)), since);
  }

  int Count(const std::string& what) const {
    const std::lock_guard lock(mutex_);
    const auto it = counts_.find(what);
    return it == counts_.end() ? 0 : it->second;
  }
  // Everything that begins with `prefix`.
  std::map<std::string, int> All(std::string_view prefix) const {
    const std::lock_guard lock(mutex_);
    std::map<std::string, int> all;
    for (const auto& [what, count] : counts_) {
      if (std::string_view(what).substr(0, prefix.size()) == prefix) all[what] = count;
    }
    return all;
  }
  void WaitFor(const std::string& what) {
    std::unique_lock lock(mutex_);
    noted_.wait(lock, [&] { return counts_.count(what) != 0; });
  }

 private:
  void Note(std::string what, Clock::time_point since) {
    const std::lock_guard lock(mutex_);
    // A beginning that nobody has set, or that lies ahead, is nobody's.
    if (since == Clock::time_point() || since > Clock::now()) absl::StrAppend(&what, " at no time");
    ++counts_[what];
    noted_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable noted_;
  std::map<std::string, int> counts_;
};

}  // namespace magnetar::daemon
