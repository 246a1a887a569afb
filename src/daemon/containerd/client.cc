#include "src/daemon/containerd/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "containerd/events_forward.pb.h"
#include "containerd/mounts.pb.h"
#include "containerd/sandbox.pb.h"
#include "containerd/snapshots.pb.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

namespace containers = ::containerd::services::containers::v1;
namespace events = ::containerd::services::events::ttrpc::v1;
namespace mounts = ::containerd::services::mounts::v1;
namespace sandbox = ::containerd::services::sandbox::v1;
namespace snapshots = ::containerd::services::snapshots::v1;

constexpr auto kDeadline = std::chrono::seconds(10);
// containerd's own limit for messages (defaults.DefaultMaxRecvMsgSize).
constexpr int kMaxMessageBytes = 16 << 20;

template <typename Request, typename Response>
struct Call {
  Call(const std::shared_ptr<grpc::Channel>& channel, Request r)
      : stub(channel), request(std::move(r)) {}

  grpc::TemplatedGenericStub<Request, Response> stub;
  grpc::ClientContext context;
  Request request;
  Response response;
  grpc::Status status;
};

// Hands a finished call from gRPC's thread to the executor of the coroutine that waits for it.
// The call goes with it, for it holds the channel: where that is the process's last channel or
// server, whoever lets it go ends gRPC's threads and joins them, which one of them cannot do (grpc
// 1.51, CallbackAlternativeCQ::Unref). The executor's context outlives the call.
template <typename Handler>
class Completion {
 public:
  explicit Completion(Handler handler)
      : handler_(std::move(handler)), work_(asio::get_associated_executor(handler_)) {}

  static void Run(std::shared_ptr<Completion> self, std::shared_ptr<void> call) {
    auto executor = self->work_.get_executor();
    asio::post(executor, [self = std::move(self), call = std::move(call)]() mutable {
      self->work_.reset();
      Handler handler = std::move(self->handler_);
      self.reset();
      asio::get_associated_cancellation_slot(handler).clear();
      std::move(handler)();
    });
  }

 private:
  Handler handler_;
  asio::executor_work_guard<asio::associated_executor_t<Handler>> work_;
};

template <typename Request, typename Response>
Co<absl::StatusOr<Response>> Invoke(std::shared_ptr<grpc::Channel> channel, std::string method,
                                    std::string ns, Request request,
                                    bool wait_for_containerd = false) {
  auto call = std::make_shared<Call<Request, Response>>(channel, std::move(request));
  call->context.AddMetadata("containerd-namespace", ns);
  call->context.set_wait_for_ready(wait_for_containerd);
  call->context.set_deadline(std::chrono::system_clock::now() + kDeadline);

  auto start = [call, &method](auto handler) {
    auto slot = asio::get_associated_cancellation_slot(handler);
    if (slot.is_connected()) {
      slot.assign([call](asio::cancellation_type) { call->context.TryCancel(); });
    }
    using Handler = decltype(handler);
    auto completion = std::make_shared<Completion<Handler>>(std::move(handler));
    call->stub.UnaryCall(&call->context, method, grpc::StubOptions(), &call->request,
                         &call->response, [call, completion](grpc::Status status) mutable {
                           call->status = std::move(status);
                           Completion<Handler>::Run(std::move(completion), std::move(call));
                         });
  };
  auto done = asio::async_initiate<const asio::use_awaitable_t<>, void()>(std::move(start),
                                                                          asio::use_awaitable);
  co_await std::move(done);

  if (!call->status.ok()) {
    const auto code = static_cast<absl::StatusCode>(call->status.error_code());
    co_return absl::Status(code,
                           absl::StrCat("containerd ", method, ": ", call->status.error_message()));
  }
  co_return std::move(call->response);
}

std::string Target(const std::string& address) {
  return absl::StartsWith(address, "unix:") ? address : absl::StrCat("unix://", address);
}

class GrpcContainerdClient : public ContainerdClient {
 public:
  explicit GrpcContainerdClient(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    arguments.SetMaxSendMessageSize(kMaxMessageBytes);
    // A socket on this host: try again soon, so that a containerd that has just come back is
    // not reported as away.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    // No proxy of the environment concerns a unix socket.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ =
        grpc::CreateCustomChannel(Target(address), grpc::InsecureChannelCredentials(), arguments);
  }

  Co<absl::StatusOr<containers::Container>> GetContainer(std::string ns, std::string id) override {
    containers::GetContainerRequest request;
    request.set_id(std::move(id));
    auto call = Invoke<containers::GetContainerRequest, containers::GetContainerResponse>(
        channel_, "/containerd.services.containers.v1.Containers/Get", std::move(ns),
        std::move(request), /*wait_for_containerd=*/true);
    auto response = co_await std::move(call);
    if (!response.ok()) co_return response.status();
    co_return std::move(*response->mutable_container());
  }

  Co<absl::StatusOr<std::vector<::containerd::types::Mount>>> SnapshotMounts(
      std::string ns, std::string snapshotter, std::string key) override {
    snapshots::MountsRequest request;
    request.set_snapshotter(std::move(snapshotter));
    request.set_key(std::move(key));
    auto call = Invoke<snapshots::MountsRequest, snapshots::MountsResponse>(
        channel_, "/containerd.services.snapshots.v1.Snapshots/Mounts", std::move(ns),
        std::move(request));
    auto response = co_await std::move(call);
    if (!response.ok()) co_return response.status();
    std::vector<::containerd::types::Mount> result(response->mounts().begin(),
                                                   response->mounts().end());
    co_return result;
  }

  Co<absl::StatusOr<std::vector<::containerd::types::Mount>>> ActivatedMounts(
      std::string ns, std::string container_id) override {
    mounts::InfoRequest request;
    request.set_name(std::move(container_id));
    auto call = Invoke<mounts::InfoRequest, mounts::InfoResponse>(
        channel_, "/containerd.services.mounts.v1.Mounts/Info", std::move(ns), std::move(request));
    auto response = co_await std::move(call);
    if (!response.ok()) co_return response.status();
    std::vector<::containerd::types::Mount> result(response->info().system().begin(),
                                                   response->info().system().end());
    co_return result;
  }

  Co<absl::StatusOr<std::vector<std::string>>> ListSandboxes(std::string ns) override {
    auto call = Invoke<sandbox::StoreListRequest, sandbox::StoreListResponse>(
        channel_, "/containerd.services.sandbox.v1.Store/List", std::move(ns),
        sandbox::StoreListRequest());
    auto response = co_await std::move(call);
    if (!response.ok()) co_return response.status();
    std::vector<std::string> ids;
    ids.reserve(response->list_size());
    for (auto& entry : *response->mutable_list())
      ids.push_back(std::move(*entry.mutable_sandbox_id()));
    co_return ids;
  }

  // The gRPC and the ttrpc service of events share their messages' shape; gRPC's is reached
  // on the socket that is configured anyway.
  Co<absl::Status> PublishEvent(std::string ns, std::string topic, std::string type_url,
                                std::string event) override {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
    events::ForwardRequest request;
    auto* envelope = request.mutable_envelope();
    envelope->mutable_timestamp()->set_seconds(seconds.count());
    envelope->mutable_timestamp()->set_nanos(
        std::chrono::duration_cast<std::chrono::nanoseconds>(now - seconds).count());
    envelope->set_namespace_(ns);
    envelope->set_topic(std::move(topic));
    envelope->mutable_event()->set_type_url(std::move(type_url));
    envelope->mutable_event()->set_value(std::move(event));
    auto call = Invoke<events::ForwardRequest, magnetar::wire::Empty>(
        channel_, "/containerd.services.events.v1.Events/Forward", std::move(ns),
        std::move(request),
        /*wait_for_containerd=*/true);
    auto response = co_await std::move(call);
    co_return response.status();
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<ContainerdClient> ContainerdClient::Create(const std::string& address) {
  return std::make_unique<GrpcContainerdClient>(address);
}

}  // namespace magnetar::daemon
