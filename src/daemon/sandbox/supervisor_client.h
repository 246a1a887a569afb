#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/child_process.h"
#include "magnetar/co.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// The daemon's connection to one sandbox's vmm-supervisor (supervisor.proto).
// UNAVAILABLE: the supervisor is gone, and by its contract the VM with it.
// Everything on the strand of the sandbox.
class SupervisorClient {
 public:
  virtual ~SupervisorClient() = default;
  virtual Co<absl::StatusOr<supervisor::v1::HelloResponse>> Hello() = 0;
  // FAILED_PRECONDITION with the console's last lines if the VM ended instead.
  virtual Co<absl::Status> WaitReady(std::chrono::nanoseconds timeout) = 0;
  virtual Co<absl::StatusOr<supervisor::v1::ExitRecord>> WaitExit() = 0;
  virtual Co<absl::StatusOr<supervisor::v1::StateResponse>> State() = 0;
  // Answers once every process is reaped.
  virtual Co<absl::Status> Kill() = 0;
};

std::shared_ptr<SupervisorClient> NewSupervisorClient(asio::any_io_executor executor,
                                                      UniqueFd socket);

// Starts supervisors and finds them again.
class SupervisorLauncher {
 public:
  // Told of the process as soon as it exists; an error gives up the launch, not the process.
  using Spawned = std::function<absl::Status(const ProcessIdentity&)>;

  virtual ~SupervisorLauncher() = default;
  // Binds the sandbox's sockets, starts vmm-supervisor with them and `launch`, and connects.
  // `launch` names descriptors by their numbers in this process; they are only borrowed.
  virtual Co<absl::StatusOr<std::shared_ptr<SupervisorClient>>> Launch(
      supervisor::v1::Launch launch, Spawned spawned) = 0;
  // UNAVAILABLE if none runs for the sandbox in `directory`.
  virtual Co<absl::StatusOr<std::shared_ptr<SupervisorClient>>> Connect(std::string directory) = 0;
};

}  // namespace magnetar::daemon
