#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "src/daemon/sandbox/supervisor_client.h"

namespace magnetar::daemon {

// The real launcher: binds the sandbox's sockets, then execs `program`.
std::unique_ptr<SupervisorLauncher> NewSupervisorLauncher(std::string program,
                                                          asio::thread_pool* blocking);

// A connected stream socket; UNAVAILABLE if nothing listens at the path.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path);

std::shared_ptr<SupervisorClient> NewSupervisorClient(asio::any_io_executor executor,
                                                      UniqueFd socket);

}  // namespace magnetar::daemon
