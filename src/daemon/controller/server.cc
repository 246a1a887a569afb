#include "src/daemon/controller/server.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "magnetar/unix_socket.h"
#include "src/daemon/controller/controller_service.h"
#include "src/daemon/controller/rpc_metrics.h"

namespace magnetar::daemon {
namespace {

// containerd sends and takes as much.
constexpr int kMaxMessageBytes = 16 << 20;
constexpr std::chrono::seconds kDrain{2};

class GrpcControllerServer : public ControllerServer {
 public:
  GrpcControllerServer(const Environment* environment, SandboxManager* manager)
      : path_(environment->config.listen),
        metrics_(environment->metrics),
        service_(environment, manager) {}

  absl::Status Listen() {
    MAGNETAR_RETURN_IF_ERROR(Annotate(ClearSocketPath(path_), "listen"));
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    int bound = 0;
    builder.AddListeningPort(absl::StrCat("unix:", path_), grpc::InsecureServerCredentials(),
                             &bound);
    builder.RegisterService(&service_);
    CountRpcs(metrics_, builder);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || bound == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", path_));
    }
    // The process's umask has kept others out since the bind.
    if (::chmod(path_.c_str(), 0600) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path_));
    return absl::OkStatus();
  }

  void Stop() override { server_->Shutdown(std::chrono::system_clock::now() + kDrain); }

 private:
  const std::string path_;
  DaemonMetrics* const metrics_;
  ControllerService service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControllerServer>> ControllerServer::Start(
    const Environment* environment, SandboxManager* manager) {
  auto server = std::make_unique<GrpcControllerServer>(environment, manager);
  MAGNETAR_RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<ControllerServer>(std::move(server));
}

}  // namespace magnetar::daemon
