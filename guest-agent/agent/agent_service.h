#pragma once

#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <string>

#include "guest-agent/agent/host_requests.h"
#include "guest-agent/pod/pod.h"
#include "guest-agent/task/task_manager.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest {

// Everything outlives the services.
struct AgentParts {
  TaskManager* tasks = nullptr;
  HostRequests* host = nullptr;
  Pod* pod = nullptr;
  // Of one thread: the steps of a set-up come one after the other.
  asio::thread_pool* setup = nullptr;
  std::function<absl::Status(const agent::v1::Network&)> configure_network;
  // Unmounts what came from the host besides the containers' own. Blocks.
  std::function<absl::Status()> unmount_shared;
  std::string version;
};

// The Agent service of agent.proto.
std::shared_ptr<const ttrpc::Services> MakeAgentServices(AgentParts parts);

}  // namespace magnetar::guest
