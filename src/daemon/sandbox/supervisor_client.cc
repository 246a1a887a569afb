#include "src/daemon/sandbox/supervisor_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::daemon {
namespace {

using supervisor::v1::ExitRecord;

constexpr char kService[] = "magnetar.supervisor.v1.Supervisor";
constexpr std::chrono::seconds kShortCall{10};
constexpr std::chrono::seconds kKillTimeout{10};

class TtrpcSupervisorClient : public SupervisorClient {
 public:
  TtrpcSupervisorClient(const asio::any_io_executor& executor, UniqueFd socket)
      : client_(ttrpc::Client::Create(executor, std::move(socket))) {}
  ~TtrpcSupervisorClient() override { client_->Close(); }

  Co<absl::StatusOr<supervisor::v1::HelloResponse>> Hello() override {
    supervisor::v1::HelloRequest request;
    request.set_protocol(kSupervisorProtocol);
    const std::chrono::nanoseconds limit = kShortCall;
    auto call = client_->Call<supervisor::v1::HelloResponse>(kService, "Hello", request, limit);
    absl::StatusOr<supervisor::v1::HelloResponse> response = co_await std::move(call);
    co_return response;
  }

  Co<absl::Status> WaitReady(std::chrono::nanoseconds timeout) override {
    supervisor::v1::WaitReadyRequest request;
    auto call =
        client_->Call<supervisor::v1::WaitReadyResponse>(kService, "WaitReady", request, timeout);
    absl::StatusOr<supervisor::v1::WaitReadyResponse> response = co_await std::move(call);
    co_return response.status();
  }

  Co<absl::StatusOr<ExitRecord>> WaitExit() override {
    supervisor::v1::WaitExitRequest request;
    const std::chrono::nanoseconds no_limit{0};
    auto call =
        client_->Call<supervisor::v1::WaitExitResponse>(kService, "WaitExit", request, no_limit);
    absl::StatusOr<supervisor::v1::WaitExitResponse> response = co_await std::move(call);
    if (!response.ok()) co_return response.status();
    co_return response->exit();
  }

  Co<absl::StatusOr<supervisor::v1::StateResponse>> State() override {
    supervisor::v1::StateRequest request;
    const std::chrono::nanoseconds limit = kShortCall;
    auto call = client_->Call<supervisor::v1::StateResponse>(kService, "State", request, limit);
    absl::StatusOr<supervisor::v1::StateResponse> response = co_await std::move(call);
    co_return response;
  }

  Co<absl::Status> Kill() override {
    supervisor::v1::KillRequest request;
    const std::chrono::nanoseconds limit = kKillTimeout;
    auto call = client_->Call<supervisor::v1::KillResponse>(kService, "Kill", request, limit);
    absl::StatusOr<supervisor::v1::KillResponse> response = co_await std::move(call);
    co_return response.status();
  }

 private:
  std::shared_ptr<ttrpc::Client> client_;
};

}  // namespace

std::shared_ptr<SupervisorClient> NewSupervisorClient(asio::any_io_executor executor,
                                                      UniqueFd socket) {
  return std::make_shared<TtrpcSupervisorClient>(executor, std::move(socket));
}

}  // namespace magnetar::daemon
