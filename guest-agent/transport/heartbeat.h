#pragma once

#include <memory>

#include "guest-agent/transport/main_loop_watch.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest {

// The Heartbeat service of agent.proto. `watch` outlives it.
std::shared_ptr<const ttrpc::Services> MakeHeartbeatServices(MainLoopWatch& watch);

}  // namespace magnetar::guest
