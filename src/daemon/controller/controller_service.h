#pragma once

#include <memory>

#include "containerd/sandbox.grpc.pb.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/manager.h"

namespace magnetar::daemon {

// containerd.services.sandbox.v1.Controller: translates requests and answers, and
// nothing else. Its reactors run on gRPC's threads and hand the work to the
// sandbox's strand; errors travel with their code.
class ControllerService : public containerd::services::sandbox::v1::Controller::CallbackService {
 public:
  ControllerService(const Environment* environment, SandboxManager* manager)
      : env_(environment), manager_(manager) {}

  grpc::ServerUnaryReactor* Create(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerCreateRequest* request,
      containerd::services::sandbox::v1::ControllerCreateResponse* response) override;
  grpc::ServerUnaryReactor* Start(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerStartRequest* request,
      containerd::services::sandbox::v1::ControllerStartResponse* response) override;
  grpc::ServerUnaryReactor* Platform(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerPlatformRequest* request,
      containerd::services::sandbox::v1::ControllerPlatformResponse* response) override;
  grpc::ServerUnaryReactor* Stop(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerStopRequest* request,
      containerd::services::sandbox::v1::ControllerStopResponse* response) override;
  grpc::ServerUnaryReactor* Wait(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerWaitRequest* request,
      containerd::services::sandbox::v1::ControllerWaitResponse* response) override;
  grpc::ServerUnaryReactor* Status(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerStatusRequest* request,
      containerd::services::sandbox::v1::ControllerStatusResponse* response) override;
  grpc::ServerUnaryReactor* Shutdown(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerShutdownRequest* request,
      containerd::services::sandbox::v1::ControllerShutdownResponse* response) override;
  grpc::ServerUnaryReactor* Metrics(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerMetricsRequest* request,
      containerd::services::sandbox::v1::ControllerMetricsResponse* response) override;
  grpc::ServerUnaryReactor* Update(
      grpc::CallbackServerContext* context,
      const containerd::services::sandbox::v1::ControllerUpdateRequest* request,
      containerd::services::sandbox::v1::ControllerUpdateResponse* response) override;

 private:
  const Environment* env_;
  SandboxManager* manager_;
};

}  // namespace magnetar::daemon
