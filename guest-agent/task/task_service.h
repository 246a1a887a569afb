#pragma once

#include <cstdint>
#include <memory>

#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/task/task_manager.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest {

// Services of one connection of containerd: Task v3 and Streaming v1.
// `connection` names it. The manager and the registry outlive the connection.
std::shared_ptr<const ttrpc::Services> MakeTaskServices(TaskManager& manager,
                                                        StreamRegistry& streams,
                                                        uint64_t connection);

}  // namespace magnetar::guest
