#include "src/daemon/controller/controller_service.h"

#include <sys/utsname.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <string>
#include <utility>

#include "magnetar/status.h"
#include "src/daemon/sandbox/clock.h"
#include "src/daemon/sandbox/pod_request.h"
#include "src/daemon/sandbox/size_annotations.h"
#include "src/daemon/sandbox/status_info.h"

namespace magnetar::daemon {
namespace {

namespace api = containerd::services::sandbox::v1;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

constexpr char kReady[] = "SANDBOX_READY";
constexpr char kNotReady[] = "SANDBOX_NOTREADY";
constexpr uint32_t kTaskApiVersion = 3;
constexpr char kMetricsType[] = "io.containerd.cgroups.v2.Metrics";
constexpr char kUpdatedResources[] = "updated-resources";

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

std::string NamespaceOf(const CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("containerd-namespace");
  if (it == metadata.end()) return "default";
  return std::string(it->second.data(), it->second.size());
}

void SetTime(int64_t ns, magnetar::wire::Timestamp* out) {
  out->set_seconds(ns / 1000000000);
  out->set_nanos(static_cast<int32_t>(ns % 1000000000));
}

ServerUnaryReactor* FinishNow(CallbackServerContext* context, const absl::Status& status) {
  ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

// Runs `work` on an executor and finishes with its status.
template <typename Executor>
void FinishAfter(const Executor& executor, ServerUnaryReactor* reactor, Co<absl::Status> work) {
  asio::co_spawn(executor, std::move(work),
                 [reactor](const std::exception_ptr& error, absl::Status status) {
                   if (error != nullptr) status = absl::InternalError("exception");
                   reactor->Finish(ToGrpc(status));
                 });
}

// A Start that is given up when its caller goes.
class StartReactor : public ServerUnaryReactor {
 public:
  explicit StartReactor(std::shared_ptr<Sandbox> sandbox) : sandbox_(std::move(sandbox)) {}
  void OnCancel() override {
    asio::post(sandbox_->strand(), [sandbox = sandbox_] { sandbox->CancelStart(); });
  }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<Sandbox> sandbox_;
};

class WaitReactor : public ServerUnaryReactor {
 public:
  WaitReactor(std::shared_ptr<Sandbox> sandbox, api::ControllerWaitResponse* response)
      : sandbox_(std::move(sandbox)), wait_(std::make_shared<uint64_t>(0)) {
    asio::post(sandbox_->strand(), [this, response, sandbox = sandbox_, wait = wait_] {
      *wait = sandbox->AddWait([this, response](absl::StatusOr<SandboxExit> exit) {
        if (exit.ok()) {
          response->set_exit_status(exit->status);
          SetTime(exit->exited_at_ns, response->mutable_exited_at());
        }
        Finish(ToGrpc(exit.status()));
      });
    });
  }
  // The strand is in order: the wait has been added before it is cancelled.
  void OnCancel() override {
    asio::post(sandbox_->strand(),
               [sandbox = sandbox_, wait = wait_] { sandbox->CancelWait(*wait); });
  }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<Sandbox> sandbox_;
  const std::shared_ptr<uint64_t> wait_;
};

// `context` lives until its reactor is finished.
Co<absl::Status> DoStart(std::shared_ptr<Sandbox> sandbox, const CallbackServerContext* context,
                         api::ControllerStartResponse* response) {
  auto start = sandbox->Start();
  absl::StatusOr<SandboxSnapshot> started = co_await std::move(start);
  if (!started.ok()) co_return started.status();
  if (context->IsCancelled()) {
    // The caller went when there was no start to be given up any more. It takes the sandbox for
    // one that failed, and nobody else knows of it.
    auto shutdown = sandbox->Shutdown();
    (void)co_await std::move(shutdown);  // it logs its own failure
    co_return absl::CancelledError("the start was cancelled");
  }
  response->set_sandbox_id(started->id);
  response->set_pid(started->pid);
  SetTime(started->created_at_ns, response->mutable_created_at());
  response->set_address(started->address);
  response->set_version(kTaskApiVersion);
  (*response->mutable_labels())["oci_runtime_type"] = "io.containerd.magnetar.v1";
  co_return absl::OkStatus();
}

Co<absl::Status> DoMetrics(std::shared_ptr<Sandbox> sandbox,
                           api::ControllerMetricsResponse* response) {
  auto call = sandbox->Metrics();
  absl::StatusOr<io::containerd::cgroups::v2::Metrics> metrics = co_await std::move(call);
  if (!metrics.ok()) co_return metrics.status();
  auto* metric = response->mutable_metrics();
  metric->set_id(sandbox->id());
  SetTime(RealtimeNs(), metric->mutable_timestamp());
  metric->mutable_data()->set_type_url(kMetricsType);
  metric->mutable_data()->set_value(metrics->SerializeAsString());
  co_return absl::OkStatus();
}

std::string HostArchitecture() {
  utsname name;
  if (::uname(&name) != 0) return "amd64";
  const std::string machine = name.machine;
  return machine == "aarch64" ? "arm64" : "amd64";
}

}  // namespace

ServerUnaryReactor* ControllerService::Create(CallbackServerContext* context,
                                              const api::ControllerCreateRequest* request,
                                              api::ControllerCreateResponse* response) {
  absl::StatusOr<PodRequest> pod = ParseCreate(*request, env_->config.run_dir);
  if (!pod.ok()) return FinishNow(context, pod.status());
  const absl::Status size =
      AskedSize(pod->config, env_->config.SizingOf(pod->runtime_handler), HostMemory()).status();
  if (!size.ok()) return FinishNow(context, size);
  response->set_sandbox_id(pod->id);
  ServerUnaryReactor* reactor = context->DefaultReactor();
  FinishAfter(env_->io->get_executor(), reactor,
              manager_->Create(*std::move(pod), NamespaceOf(*context)));
  return reactor;
}

ServerUnaryReactor* ControllerService::Start(CallbackServerContext* context,
                                             const api::ControllerStartRequest* request,
                                             api::ControllerStartResponse* response) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  auto* reactor = new StartReactor(*sandbox);
  FinishAfter((*sandbox)->strand(), reactor, DoStart(*sandbox, context, response));
  return reactor;
}

ServerUnaryReactor* ControllerService::Platform(CallbackServerContext* context,
                                                const api::ControllerPlatformRequest* request,
                                                api::ControllerPlatformResponse* response) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  response->mutable_platform()->set_os("linux");
  response->mutable_platform()->set_architecture(HostArchitecture());
  return FinishNow(context, absl::OkStatus());
}

ServerUnaryReactor* ControllerService::Stop(CallbackServerContext* context,
                                            const api::ControllerStopRequest* request,
                                            api::ControllerStopResponse*) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  ServerUnaryReactor* reactor = context->DefaultReactor();
  FinishAfter((*sandbox)->strand(), reactor, (*sandbox)->Stop());
  return reactor;
}

ServerUnaryReactor* ControllerService::Wait(CallbackServerContext* context,
                                            const api::ControllerWaitRequest* request,
                                            api::ControllerWaitResponse* response) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  return new WaitReactor(*std::move(sandbox), response);
}

ServerUnaryReactor* ControllerService::Status(CallbackServerContext* context,
                                              const api::ControllerStatusRequest* request,
                                              api::ControllerStatusResponse* response) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  const std::shared_ptr<const SandboxSnapshot> now = (*sandbox)->snapshot();
  response->set_sandbox_id(now->id);
  response->set_pid(now->pid);
  response->set_state(now->state == SandboxState::kReady ? kReady : kNotReady);
  SetTime(now->created_at_ns, response->mutable_created_at());
  if (now->exited_at_ns != 0) SetTime(now->exited_at_ns, response->mutable_exited_at());
  response->set_address(now->address);
  response->set_version(kTaskApiVersion);
  if (request->verbose()) {
    const Record record = (*sandbox)->record();
    (*response->mutable_info())["info"] = StatusInfoJson(*now, record);
    (*response->mutable_info())["magnetar"] = VmInfoJson(*now, record);
  }
  return FinishNow(context, absl::OkStatus());
}

ServerUnaryReactor* ControllerService::Shutdown(CallbackServerContext* context,
                                                const api::ControllerShutdownRequest* request,
                                                api::ControllerShutdownResponse*) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  ServerUnaryReactor* reactor = context->DefaultReactor();
  FinishAfter((*sandbox)->strand(), reactor, (*sandbox)->Shutdown());
  return reactor;
}

ServerUnaryReactor* ControllerService::Metrics(CallbackServerContext* context,
                                               const api::ControllerMetricsRequest* request,
                                               api::ControllerMetricsResponse* response) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  ServerUnaryReactor* reactor = context->DefaultReactor();
  FinishAfter((*sandbox)->strand(), reactor, DoMetrics(*sandbox, response));
  return reactor;
}

ServerUnaryReactor* ControllerService::Update(CallbackServerContext* context,
                                              const api::ControllerUpdateRequest* request,
                                              api::ControllerUpdateResponse*) {
  absl::StatusOr<std::shared_ptr<Sandbox>> sandbox = manager_->Find(request->sandbox_id());
  if (!sandbox.ok()) return FinishNow(context, sandbox.status());
  const auto& extensions = request->sandbox().extensions();
  const auto it = extensions.find(kUpdatedResources);
  // Everything else that containerd keeps in its store is of no concern here.
  if (it == extensions.end()) return FinishNow(context, absl::OkStatus());
  absl::StatusOr<UpdatedResources> resources = ParseUpdatedResources(it->second.value());
  if (!resources.ok()) return FinishNow(context, resources.status());
  ServerUnaryReactor* reactor = context->DefaultReactor();
  FinishAfter((*sandbox)->strand(), reactor, (*sandbox)->Update(*std::move(resources)));
  return reactor;
}

}  // namespace magnetar::daemon
