#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/task/task_manager.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest {

// Services of one connection of containerd: Task v3 and Streaming v1.
// `connection` names it; `stream_ended` is called when one of its stdio streams is
// over. The manager and the registry outlive the connection.
std::shared_ptr<const ttrpc::Services> MakeTaskServices(TaskManager& manager,
                                                        StreamRegistry& streams,
                                                        uint64_t connection,
                                                        std::function<void()> stream_ended);

}  // namespace magnetar::guest
