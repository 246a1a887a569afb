#include "guest-agent/transport/heartbeat.h"

#include <sys/resource.h>

#include <ctime>

#include "guest-agent/transport/clock.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {
namespace {

Co<absl::StatusOr<agent::v1::BeatResponse>> Beat(MainLoopWatch* watch,
                                                 agent::v1::BeatRequest request) {
  AdjustClock(request.host_time_ns());
  timespec uptime;
  ::clock_gettime(CLOCK_BOOTTIME, &uptime);
  agent::v1::BeatResponse response;
  response.set_main_loop_age_ms(watch->AgeMs());
  response.set_uptime_ns(int64_t{uptime.tv_sec} * 1000000000 + uptime.tv_nsec);
  // A call, where /proc would be a file.
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) == 0) {
    response.set_agent_peak_rss_bytes(static_cast<uint64_t>(usage.ru_maxrss) << 10);
  }
  co_return response;
}

}  // namespace

std::shared_ptr<const ttrpc::Services> MakeHeartbeatServices(MainLoopWatch& watch) {
  auto services = std::make_shared<ttrpc::Services>();
  services->Add<agent::v1::BeatRequest, agent::v1::BeatResponse>(
      "magnetar.agent.v1.Heartbeat", "Beat",
      [&watch](const ttrpc::CallContext&, agent::v1::BeatRequest request) {
        return Beat(&watch, std::move(request));
      });
  return services;
}

}  // namespace magnetar::guest
