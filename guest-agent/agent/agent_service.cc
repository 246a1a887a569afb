#include "guest-agent/agent/agent_service.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/pod/cpus.h"
#include "guest-agent/transport/clock.h"
#include "guest-agent/util/log.h"
#include "guest-agent/util/notifier.h"
#include "magnetar/blocking.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

namespace v1 = agent::v1;

using SteadyClock = std::chrono::steady_clock;

constexpr char kAgent[] = "magnetar.agent.v1.Agent";

// Daemons before this one did not exist; it rises when the agent drops what they need.
constexpr uint32_t kMinimumProtocol = 1;

// See HelloResponse in agent.proto.
constexpr const char* kFeatures[] = {"9p", "huge-pages", "release-retry", "resize",
                                     "shutdown-deadline"};

// For a processor that was announced to be there.
constexpr auto kCpuTimeout = std::chrono::seconds(10);

// What stays free of a guest whose containers use more than it is to have: for what happens before
// it is asked again.
constexpr uint64_t kNotSpared = 32 << 20;

// What a Shutdown without a timeout may take.
constexpr auto kShutdownTimeout = std::chrono::seconds(2);

template <typename T>
using Result = Co<absl::StatusOr<T>>;

Result<v1::HelloResponse> Hello(std::shared_ptr<const AgentParts> parts, v1::HelloRequest request) {
  if (request.protocol() < kMinimumProtocol) {
    co_return absl::FailedPreconditionError(absl::StrCat("the daemon speaks protocol ",
                                                         request.protocol(), ", this guest needs ",
                                                         kMinimumProtocol, " or later"));
  }
  if (parts->pod->sandbox_id().empty()) {
    StepClock(request.host_time_ns());
  } else {
    AdjustClock(request.host_time_ns());
  }
  Log(LogLevel::kInfo, "daemon connected version=", request.daemon_version(),
      " protocol=", request.protocol());
  v1::HelloResponse response;
  for (const char* feature : kFeatures) response.add_features(feature);
  response.set_protocol(kAgentProtocol);
  response.set_agent_version(parts->version);
  utsname name;
  if (::uname(&name) == 0) response.set_kernel_release(name.release);
  const absl::StatusOr<uint64_t> memory = ReadMeminfo("/proc/meminfo", "MemTotal");
  if (memory.ok()) response.set_memory_total_bytes(*memory);
  response.set_cpus(static_cast<uint32_t>(::sysconf(_SC_NPROCESSORS_ONLN)));
  response.set_sandbox_id(parts->pod->sandbox_id());
  co_return response;
}

// Runs a blocking step to its end, even if its caller goes away meanwhile.
template <typename F>
Co<absl::Status> RunStep(asio::thread_pool* pool, F step) {
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  auto run = RunBlocking(*pool, std::move(step));
  co_return co_await std::move(run);
}

Result<v1::SetupSandboxResponse> SetupSandbox(std::shared_ptr<const AgentParts> parts,
                                              v1::SetupSandboxRequest request) {
  auto step = [parts, request = std::move(request)] { return parts->pod->Setup(request); };
  auto run = RunStep(parts->setup, std::move(step));
  const absl::Status status = co_await std::move(run);
  if (!status.ok()) {
    Log(LogLevel::kError, "set-up failed: ", status.ToString());
    co_return status;
  }
  Log(LogLevel::kInfo, "pod is set up");
  co_return v1::SetupSandboxResponse();
}

Result<v1::ConfigureNetworkResponse> Configure(std::shared_ptr<const AgentParts> parts,
                                               v1::Network network) {
  auto step = [parts, network = std::move(network)] { return parts->configure_network(network); };
  auto run = RunStep(parts->setup, std::move(step));
  const absl::Status status = co_await std::move(run);
  if (!status.ok()) co_return status;
  co_return v1::ConfigureNetworkResponse();
}

Result<v1::ResizeResponse> Resize(std::shared_ptr<const AgentParts> parts,
                                  v1::ResizeRequest request) {
  auto step = [parts, request]() -> absl::Status {
    if (request.memory()) LoadModulesFor("mem");
    MAGNETAR_RETURN_IF_ERROR(
        Annotate(parts->pod->memory().SetAdded(request.added_bytes()), "memory limit"));
    return OnlineCpus(request.vcpus(), kCpuTimeout);
  };
  auto run = RunStep(parts->setup, std::move(step));
  const absl::Status status = co_await std::move(run);
  if (!status.ok()) {
    Log(LogLevel::kWarn, "resize: ", status.ToString());
    co_return status;
  }
  v1::ResizeResponse response;
  if (parts->pod->memory().fits()) {
    response.set_spare_bytes(std::numeric_limits<uint64_t>::max());
  } else if (const auto free = ReadMeminfo("/proc/meminfo", "MemAvailable"); free.ok()) {
    response.set_spare_bytes(*free - std::min(*free, kNotSpared));
  }
  co_return response;
}

Result<v1::ListContainersResponse> ListContainers(std::shared_ptr<const AgentParts> parts) {
  v1::ListContainersResponse response;
  for (const auto& container : parts->tasks->List()) {
    v1::ContainerSummary* summary = response.add_containers();
    summary->set_container_id(container->id);
    summary->set_running(container->init->state != Process::State::kStopped);
    if (summary->running()) continue;
    summary->set_exit_status(container->init->exit.status);
    summary->set_exited_at_ns(container->init->exit.at_ns);
  }
  co_return response;
}

// Runs a blocking step on a thread of its own, because what it is to save may be what the
// pools are stuck in. DEADLINE_EXCEEDED: it goes on alone.
Co<absl::Status> RunAside(std::function<absl::Status()> step, SteadyClock::time_point deadline) {
  struct State {
    explicit State(const asio::any_io_executor& executor) : done(executor) {}
    Event done;
    absl::Status status;
  };
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  auto state = std::make_shared<State>(executor);
  std::thread([executor, state, step = std::move(step)] {
    const absl::Status status = step();
    asio::post(executor, [state, status] {
      state->status = status;
      state->done.Set();
    });
  }).detach();
  const bool done = co_await state->done.WaitUntil(deadline);
  if (!done) co_return absl::DeadlineExceededError("the guest's file systems are not synced");
  co_return state->status;
}

Result<v1::ShutdownResponse> Shutdown(std::shared_ptr<const AgentParts> parts,
                                      v1::ShutdownRequest request) {
  co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
  Log(LogLevel::kInfo, "shutdown timeout_ms=", request.timeout_ms());
  const std::chrono::milliseconds timeout = request.timeout_ms() == 0
                                                ? kShutdownTimeout
                                                : std::chrono::milliseconds(request.timeout_ms());
  const auto deadline = SteadyClock::now() + timeout;
  // The last quarter is left for the sync, whatever became of the containers.
  auto close = parts->tasks->Close(deadline - timeout / 4);
  absl::Status status = co_await std::move(close);
  auto finish = [unmount_shared = parts->unmount_shared]() -> absl::Status {
    // Before anything that can get stuck on a host that does not answer.
    ::sync();
    return unmount_shared();
  };
  auto aside = RunAside(std::move(finish), deadline);
  const absl::Status finished = co_await std::move(aside);
  if (status.ok()) status = finished;
  if (!status.ok()) {
    Log(LogLevel::kError, "shutdown left something: ", status.ToString());
    co_return status;
  }
  co_return v1::ShutdownResponse();
}

}  // namespace

std::shared_ptr<const ttrpc::Services> MakeAgentServices(AgentParts given) {
  auto parts = std::make_shared<const AgentParts>(std::move(given));
  auto services = std::make_shared<ttrpc::Services>();
  using Context = ttrpc::CallContext;
  services->Add<v1::HelloRequest, v1::HelloResponse>(
      kAgent, "Hello", [parts](const Context&, v1::HelloRequest request) {
        return Hello(parts, std::move(request));
      });
  services->Add<v1::SetupSandboxRequest, v1::SetupSandboxResponse>(
      kAgent, "SetupSandbox", [parts](const Context&, v1::SetupSandboxRequest request) {
        return SetupSandbox(parts, std::move(request));
      });
  services->Add<v1::Network, v1::ConfigureNetworkResponse>(
      kAgent, "ConfigureNetwork", [parts](const Context&, v1::Network network) {
        return Configure(parts, std::move(network));
      });
  services->Add<v1::ResizeRequest, v1::ResizeResponse>(
      kAgent, "Resize", [parts](const Context&, v1::ResizeRequest request) {
        return Resize(parts, std::move(request));
      });
  services->Add<v1::ListContainersRequest, v1::ListContainersResponse>(
      kAgent, "ListContainers",
      [parts](const Context&, const v1::ListContainersRequest&) { return ListContainers(parts); });
  services->Add<v1::ShutdownRequest, v1::ShutdownResponse>(
      kAgent, "Shutdown", [parts](const Context&, v1::ShutdownRequest request) {
        return Shutdown(parts, std::move(request));
      });
  services->AddStream(kAgent, "HostRequests",
                      [parts](const Context&, std::shared_ptr<ttrpc::Stream> stream) {
                        return parts->host->Serve(std::move(stream));
                      });
  return services;
}

}  // namespace magnetar::guest
