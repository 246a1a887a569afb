#include "src/supervisor/service.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "magnetar/ports.h"
#include "magnetar/supervisor.pb.h"
#include "src/supervisor/control_server.h"
#include "src/supervisor/machine.h"

namespace magnetar::supervisor {
namespace {

using ttrpc::CallContext;
constexpr char kService[] = "magnetar.supervisor.v1.Supervisor";

// supervisor.proto explains them.
constexpr const char* kFeatures[] = {"kernel-vsock", "mux", "port-forward", "guest-streams"};

template <typename T>
using Result = Co<absl::StatusOr<T>>;

}  // namespace

std::shared_ptr<const ttrpc::Services> MakeSupervisorService(Machine& machine,
                                                             std::shared_ptr<Calls> calls) {
  auto services = std::make_shared<ttrpc::Services>();
  Machine* const m = &machine;
  services->Add<v1::HelloRequest, v1::HelloResponse>(
      kService, "Hello",
      [calls](CallContext, v1::HelloRequest request) -> Result<v1::HelloResponse> {
        const Calls::One call(calls);
        if (request.protocol() == 0) {
          co_return absl::InvalidArgumentError("hello: protocol: missing");
        }
        v1::HelloResponse response;
        response.set_protocol(std::min(request.protocol(), kSupervisorProtocol));
        for (const char* feature : kFeatures) response.add_features(feature);
        response.set_pid(static_cast<uint32_t>(::getpid()));
        co_return response;
      });
  services->Add<v1::WaitReadyRequest, v1::WaitReadyResponse>(
      kService, "WaitReady",
      [m, calls](CallContext, v1::WaitReadyRequest) -> Result<v1::WaitReadyResponse> {
        const Calls::One call(calls);
        auto wait = m->ready_or_ended().Wait();
        co_await std::move(wait);
        if (m->exit().has_value()) co_return absl::FailedPreconditionError(m->Epitaph());
        co_return v1::WaitReadyResponse();
      });
  services->Add<v1::WaitExitRequest, v1::WaitExitResponse>(
      kService, "WaitExit",
      [m, calls](CallContext, v1::WaitExitRequest) -> Result<v1::WaitExitResponse> {
        const Calls::One call(calls);
        auto wait = m->ended().Wait();
        co_await std::move(wait);
        v1::WaitExitResponse response;
        *response.mutable_exit() = *m->exit();
        co_return response;
      });
  services->Add<v1::StateRequest, v1::StateResponse>(
      kService, "State", [m, calls](CallContext, v1::StateRequest) -> Result<v1::StateResponse> {
        const Calls::One call(calls);
        v1::StateResponse response;
        m->FillState(response);
        co_return response;
      });
  services->Add<v1::ConsoleRequest, v1::ConsoleResponse>(
      kService, "Console",
      [m, calls](CallContext, v1::ConsoleRequest) -> Result<v1::ConsoleResponse> {
        const Calls::One call(calls);
        v1::ConsoleResponse response;
        response.set_data(m->ring().Contents());
        co_return response;
      });
  services->Add<v1::KillRequest, v1::KillResponse>(
      kService, "Kill", [m, calls](CallContext, v1::KillRequest) -> Result<v1::KillResponse> {
        const Calls::One call(calls);
        m->Kill("killed on request");
        auto wait = m->ended().Wait();
        co_await std::move(wait);
        co_return v1::KillResponse();
      });
  return services;
}

}  // namespace magnetar::supervisor
