#include "src/daemon/metrics/metrics.h"

namespace magnetar::daemon {
namespace {

class Ignored final : public DaemonMetrics {
 public:
  void StartEnded(const absl::Status&, Clock::time_point) override {}
  void StartPhaseEnded(StartPhase, const absl::Status&, Clock::time_point) override {}
  void PrepareEnded(const absl::Status&, Clock::time_point) override {}
  void TeardownEnded(Clock::time_point) override {}
  void TeardownFailed(std::string_view) override {}
  void HeartbeatMissed() override {}
  void VmEnded(VmEnd) override {}
  void RpcEnded(std::string_view, absl::StatusCode, Clock::time_point) override {}
};

}  // namespace

DaemonMetrics* NoMetrics() {
  static Ignored ignored;
  return &ignored;
}

}  // namespace magnetar::daemon
