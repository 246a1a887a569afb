#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/co.h"
#include "src/daemon/sandbox/host_request_stream.h"

namespace magnetar::daemon {

// The daemon's connection to one guest's agent (agent.proto, port 1025).
// Errors: UNAVAILABLE when the connection is gone, DEADLINE_EXCEEDED, else the
// agent's own. Everything on the strand of the sandbox.
class AgentClient {
 public:
  virtual ~AgentClient() = default;
  virtual Co<absl::StatusOr<agent::v1::HelloResponse>> Hello(std::chrono::nanoseconds timeout) = 0;
  virtual Co<absl::Status> SetupSandbox(agent::v1::SetupSandboxRequest request,
                                        std::chrono::nanoseconds timeout) = 0;
  virtual Co<absl::StatusOr<agent::v1::ResizeResponse>> Resize(
      agent::v1::ResizeRequest request, std::chrono::nanoseconds timeout) = 0;
  virtual Co<absl::Status> ConfigureNetwork(agent::v1::Network network,
                                            std::chrono::nanoseconds timeout) = 0;
  virtual Co<absl::StatusOr<agent::v1::ListContainersResponse>> ListContainers(
      std::chrono::nanoseconds timeout) = 0;
  // `timeout` is what the guest may take; the call gives it a little more.
  virtual Co<absl::Status> Shutdown(std::chrono::milliseconds timeout) = 0;
  // Serves the guest's requests until the connection ends.
  virtual Co<absl::Status> ServeHostRequests(HostRequestHandler handler) = 0;
  virtual void Close() = 0;
};

// Reaches guests through their vm.vsock.
class GuestDialer {
 public:
  virtual ~GuestDialer() = default;
  virtual Co<absl::StatusOr<std::shared_ptr<AgentClient>>> DialAgent(
      std::string vsock_path, std::chrono::nanoseconds timeout) = 0;
  // One heartbeat on a connection of its own.
  virtual Co<absl::StatusOr<agent::v1::BeatResponse>> Beat(std::string vsock_path,
                                                           std::chrono::nanoseconds timeout) = 0;
};

std::unique_ptr<GuestDialer> NewGuestDialer();

}  // namespace magnetar::daemon
