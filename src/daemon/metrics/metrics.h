#pragma once

#include <chrono>
#include <string_view>

#include "absl/status/status.h"

namespace magnetar::daemon {

// The parts of a VM's start, in their order; the network is a part of the host's.
enum class StartPhase { kHost, kNetwork, kLaunch, kReady, kSetup };

// How a VM ended.
enum class VmEnd {
  kAsked,       // its sandbox was stopped, or its start given up
  kGuest,       // the guest powered off, or its kernel panicked
  kDied,        // one of its processes on the host was killed or failed
  kHung,        // it was killed because the guest answered no heartbeat
  kUnkillable,  // it was killed because the guest did not end a container
};

// What the daemon counts of its own work, for whoever watches the node. Counters start at zero with
// the daemon. Every call takes a microsecond or so and never waits for anything but another such
// call; any thread. `since` is when that which has ended began.
class DaemonMetrics {
 public:
  using Clock = std::chrono::steady_clock;

  virtual ~DaemonMetrics() = default;
  // A sandbox's start, that is, one that was begun.
  virtual void StartEnded(const absl::Status& status, Clock::time_point since) = 0;
  virtual void StartPhaseEnded(StartPhase phase, const absl::Status& status,
                               Clock::time_point since) = 0;
  virtual void PrepareEnded(const absl::Status& status, Clock::time_point since) = 0;
  virtual void TeardownEnded(Clock::time_point since) = 0;
  // `what` is one of few: a Step's name, "container" or "record".
  virtual void TeardownFailed(std::string_view what) = 0;
  virtual void HeartbeatMissed() = 0;
  virtual void VmEnded(VmEnd end) = 0;
  // `method` is one of the Controller's, or "other".
  virtual void RpcEnded(std::string_view method, absl::StatusCode code,
                        Clock::time_point since) = 0;
};

// Counts nothing; lives as long as the process.
DaemonMetrics* NoMetrics();

}  // namespace magnetar::daemon
