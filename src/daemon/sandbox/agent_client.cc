#include "src/daemon/sandbox/agent_client.h"

#include <algorithm>
#include <boost/asio/this_coro.hpp>
#include <utility>

#include "magnetar/hybrid_vsock.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/daemon/sandbox/clock.h"

namespace magnetar::daemon {
namespace {

constexpr char kAgentService[] = "magnetar.agent.v1.Agent";
constexpr char kHeartbeatService[] = "magnetar.agent.v1.Heartbeat";

// A guest is believed nothing, so also not that its words are worth the daemon's memory, which all
// pods share. The longest is its list of containers, some 110 bytes for each.
constexpr ttrpc::Limits kLimits = {.max_received_bytes = 128 << 10,
                                   .max_stream_backlog_bytes = 256 << 10,
                                   .max_buffered_bytes = 512 << 10};

class TtrpcAgentClient : public AgentClient {
 public:
  TtrpcAgentClient(asio::any_io_executor executor, UniqueFd socket)
      : executor_(executor), client_(ttrpc::Client::Create(executor, std::move(socket), kLimits)) {}
  ~TtrpcAgentClient() override { client_->Close(); }

  Co<absl::StatusOr<agent::v1::HelloResponse>> Hello(std::chrono::nanoseconds timeout) override {
    agent::v1::HelloRequest request;
    request.set_protocol(kAgentProtocol);
    request.set_daemon_version(MAGNETAR_VERSION);
    request.set_host_time_ns(RealtimeNs());
    auto call = client_->Call<agent::v1::HelloResponse>(kAgentService, "Hello", std::move(request),
                                                        timeout);
    absl::StatusOr<agent::v1::HelloResponse> response = co_await std::move(call);
    co_return response;
  }

  Co<absl::Status> SetupSandbox(agent::v1::SetupSandboxRequest request,
                                std::chrono::nanoseconds timeout) override {
    auto call = client_->Call<agent::v1::SetupSandboxResponse>(kAgentService, "SetupSandbox",
                                                               std::move(request), timeout);
    absl::StatusOr<agent::v1::SetupSandboxResponse> response = co_await std::move(call);
    co_return response.status();
  }

  Co<absl::StatusOr<agent::v1::ResizeResponse>> Resize(agent::v1::ResizeRequest request,
                                                       std::chrono::nanoseconds timeout) override {
    auto call = client_->Call<agent::v1::ResizeResponse>(kAgentService, "Resize",
                                                         std::move(request), timeout);
    co_return co_await std::move(call);
  }

  Co<absl::Status> ConfigureNetwork(agent::v1::Network network,
                                    std::chrono::nanoseconds timeout) override {
    auto call = client_->Call<agent::v1::ConfigureNetworkResponse>(
        kAgentService, "ConfigureNetwork", std::move(network), timeout);
    absl::StatusOr<agent::v1::ConfigureNetworkResponse> response = co_await std::move(call);
    co_return response.status();
  }

  Co<absl::StatusOr<agent::v1::ListContainersResponse>> ListContainers(
      std::chrono::nanoseconds timeout) override {
    agent::v1::ListContainersRequest request;
    auto call = client_->Call<agent::v1::ListContainersResponse>(kAgentService, "ListContainers",
                                                                 std::move(request), timeout);
    absl::StatusOr<agent::v1::ListContainersResponse> response = co_await std::move(call);
    co_return response;
  }

  Co<absl::Status> Shutdown(std::chrono::milliseconds timeout) override {
    agent::v1::ShutdownRequest request;
    request.set_timeout_ms(static_cast<uint32_t>(timeout.count()));
    const std::chrono::nanoseconds limit = timeout + std::chrono::milliseconds(500);
    auto call = client_->Call<agent::v1::ShutdownResponse>(kAgentService, "Shutdown",
                                                           std::move(request), limit);
    absl::StatusOr<agent::v1::ShutdownResponse> response = co_await std::move(call);
    co_return response.status();
  }

  Co<absl::Status> ServeHostRequests(HostRequestHandler handler) override {
    auto open = client_->OpenStream(kAgentService, "HostRequests");
    absl::StatusOr<std::shared_ptr<ttrpc::Stream>> stream = co_await std::move(open);
    if (!stream.ok()) co_return Annotate(stream.status(), "open HostRequests");
    auto serve = ServeHostRequestStream(*std::move(stream), std::move(handler));
    const absl::Status status = co_await std::move(serve);
    co_return status;
  }

  void Close() override { client_->Close(); }

 private:
  asio::any_io_executor executor_;
  std::shared_ptr<ttrpc::Client> client_;
};

class VsockGuestDialer : public GuestDialer {
 public:
  Co<absl::StatusOr<std::shared_ptr<AgentClient>>> DialAgent(
      std::string vsock_path, std::chrono::nanoseconds timeout) override {
    auto dial = DialHybridVsock(std::move(vsock_path), kAgentPort, timeout);
    absl::StatusOr<UniqueFd> socket = co_await std::move(dial);
    if (!socket.ok()) co_return Annotate(socket.status(), "dial the guest's agent");
    const asio::any_io_executor executor = co_await asio::this_coro::executor;
    std::shared_ptr<AgentClient> client =
        std::make_shared<TtrpcAgentClient>(executor, *std::move(socket));
    co_return client;
  }

  Co<absl::StatusOr<agent::v1::BeatResponse>> Beat(std::string vsock_path,
                                                   std::chrono::nanoseconds timeout) override {
    const auto begin = std::chrono::steady_clock::now();
    auto dial = DialHybridVsock(std::move(vsock_path), kHeartbeatPort, timeout);
    absl::StatusOr<UniqueFd> socket = co_await std::move(dial);
    if (!socket.ok()) co_return Annotate(socket.status(), "dial the guest's heartbeat");
    const asio::any_io_executor executor = co_await asio::this_coro::executor;
    std::shared_ptr<ttrpc::Client> client =
        ttrpc::Client::Create(executor, *std::move(socket), kLimits);
    agent::v1::BeatRequest request;
    request.set_host_time_ns(RealtimeNs());
    // Zero would mean no limit.
    const auto left = std::max<std::chrono::nanoseconds>(
        timeout - (std::chrono::steady_clock::now() - begin), std::chrono::milliseconds(1));
    auto call =
        client->Call<agent::v1::BeatResponse>(kHeartbeatService, "Beat", std::move(request), left);
    absl::StatusOr<agent::v1::BeatResponse> response = co_await std::move(call);
    client->Close();
    co_return response;
  }
};

}  // namespace

std::unique_ptr<GuestDialer> NewGuestDialer() { return std::make_unique<VsockGuestDialer>(); }

}  // namespace magnetar::daemon
