#pragma once

#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <string>

#include "src/daemon/sandbox/supervisor_client.h"

namespace magnetar::daemon {

// The real launcher: binds the sandbox's sockets, then execs `program`.
std::unique_ptr<SupervisorLauncher> NewSupervisorLauncher(std::string program,
                                                          asio::thread_pool* blocking);

}  // namespace magnetar::daemon
