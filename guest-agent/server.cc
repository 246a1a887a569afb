#include "guest-agent/server.h"

#include <malloc.h>
#include <sys/mman.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <csignal>
#include <utility>

#include "guest-agent/agent/agent_service.h"
#include "guest-agent/agent/host_requests.h"
#include "guest-agent/init/boot.h"
#include "guest-agent/init/reaper.h"
#include "guest-agent/network/network.h"
#include "guest-agent/pod/pod.h"
#include "guest-agent/storage/container_mounts.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/storage/share_stream.h"
#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/task/crun.h"
#include "guest-agent/task/task_connection.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/transport/forward.h"
#include "guest-agent/transport/transport.h"
#include "guest-agent/util/log.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

// Mounts and unmounts, which wait for devices and for the host.
constexpr unsigned kBlockingThreads = 3;
// Reads of counters, which wait for nothing.
constexpr unsigned kCounterThreads = 1;

Co<void> ServeAgent(UniqueFd connection, std::shared_ptr<const ttrpc::Services> services) {
  auto serve = ttrpc::ServeConnection(std::move(connection), std::move(services));
  const absl::Status status = co_await std::move(serve);
  Log(LogLevel::kInfo, "daemon's connection ended: ", status.ToString());
}

Co<void> ServeOutput(StreamRegistry* streams, UniqueFd connection) {
  auto serve = streams->ServeOutput(std::move(connection));
  const absl::Status status = co_await std::move(serve);
  if (!status.ok()) Log(LogLevel::kWarn, "output: ", status.ToString());
}

// A crash of PID 1 must not look like a pause: what the kernel kills it for ends the machine.
void LeaveSignalsToTheKernel() { ::signal(SIGPIPE, SIG_IGN); }

// The heartbeat must not wait for a page of this program to come back from the
// disk whose failure it is to tell: what was once used stays.
void LockPages() {
  if (::mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) {
    Log(LogLevel::kWarn, "pages are not locked errno=", errno);
  }
}

// All parts, in the order in which they stand on each other.
class Server {
 public:
  Server();
  absl::Status Run(const BootOptions& options);

 private:
  void Connected(uint32_t port, UniqueFd connection);
  absl::Status UnmountShared() { return Unmount(guest_paths_.shared); }

  asio::io_context main_loop_{1};
  const asio::any_io_executor executor_ = main_loop_.get_executor();
  asio::thread_pool blocking_{kBlockingThreads};
  asio::thread_pool counters_{kCounterThreads};
  GuestNetwork network_;  // used on setup_ only
  asio::thread_pool setup_{1};
  const GuestPaths guest_paths_;
  Reaper reaper_{executor_};
  std::unique_ptr<OciRuntime> runtime_ = MakeCrun(reaper_, CrunPaths());
  StreamRegistry streams_{executor_};
  HostRequests host_{executor_};
  CgroupEvents cgroup_events_{executor_};
  ShareStream share_stream_;
  Pod pod_{PodPaths(), [this](const agent::v1::Network& n) { return network_.Configure(n); },
           &share_stream_};
  KernelContainerMounts mounts_{guest_paths_, &pod_.memory()};
  TaskManager tasks_;
  TaskConnections task_connections_{executor_, tasks_, streams_};
  Forwards forwards_{executor_};
  std::shared_ptr<const ttrpc::Services> agent_;
  Transport transport_;
};

Server::Server()
    : tasks_(executor_,
             TaskEnvironment{.runtime = runtime_.get(),
                             .reaper = &reaper_,
                             .streams = &streams_,
                             .host = &host_,
                             .mounts = &mounts_,
                             .cgroup_events = &cgroup_events_,
                             .blocking = &blocking_,
                             .counters = &counters_,
                             .vmm_pid = [this] { return pod_.vmm_pid(); },
                             .hold_pid_namespace = [this] { return pod_.HoldPidNamespace(); }}),
      agent_(MakeAgentServices(AgentParts{
          .tasks = &tasks_,
          .host = &host_,
          .pod = &pod_,
          .setup = &setup_,
          .configure_network =
              [this](const agent::v1::Network& network) { return network_.Configure(network); },
          .unmount_shared = [this] { return UnmountShared(); },
          .version = MAGNETAR_VERSION})),
      transport_(
          executor_,
          [this](uint32_t port, UniqueFd connection) { Connected(port, std::move(connection)); },
          [](const absl::Status& status) {
            // Nobody can reach this VM any more, and nobody will.
            Log(LogLevel::kError, "the way to the host is lost: ", status.ToString());
            EndMachine();
          }) {}

void Server::Connected(uint32_t port, UniqueFd connection) {
  switch (port) {
    case kTaskPort:
      task_connections_.Serve(std::move(connection));
      break;
    case kAgentPort:
      asio::co_spawn(main_loop_, ServeAgent(std::move(connection), agent_), asio::detached);
      break;
    case kForwardPort:
      forwards_.Serve(std::move(connection));
      break;
    case kOutputPort:
      asio::co_spawn(main_loop_, ServeOutput(&streams_, std::move(connection)), asio::detached);
      break;
    case kFileSharePort:
      streams_.KeepSources();
      share_stream_.Offer(std::move(connection));
      break;
    default:
      break;
  }
}

absl::Status Server::Run(const BootOptions& options) {
  reaper_.Start();
  MAGNETAR_RETURN_IF_ERROR(cgroup_events_.Start());
  LockPages();
  MAGNETAR_RETURN_IF_ERROR(Annotate(transport_.Start(options.transport), "transport"));
  Log(LogLevel::kInfo, "agent is ready version=" MAGNETAR_VERSION);
  const auto work = asio::make_work_guard(main_loop_);
  main_loop_.run();
  return absl::InternalError("the main loop has ended");
}

}  // namespace

absl::Status Serve(const BootOptions& options) {
  SetLogLevel(options.log_level);
  LeaveSignalsToTheKernel();
  // One arena for all threads: the agent's memory is counted in kilobytes.
  ::mallopt(M_ARENA_MAX, 1);
  static Server server;
  return server.Run(options);
}

}  // namespace magnetar::guest
