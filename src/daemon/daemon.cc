#include "src/daemon/daemon.h"

#include <malloc.h>
#include <signal.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/status.h"
#include "src/daemon/choose_vmm.h"
#include "src/daemon/config/log.h"
#include "src/daemon/controller/server.h"
#include "src/daemon/metrics/address.h"
#include "src/daemon/metrics/http_server.h"
#include "src/daemon/metrics/process_collector.h"
#include "src/daemon/metrics/prometheus_metrics.h"
#include "src/daemon/metrics/sandbox_collector.h"
#include "src/daemon/run_directory.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/manager.h"
#include "src/daemon/sandbox/supervisor_launch.h"

namespace magnetar::daemon {
namespace {

// Everything that happens on them is short; blocking work has a pool of its own.
constexpr int kEventThreads = 2;
constexpr int kBlockingThreads = 8;
// A host path that never answers keeps one of these; a sandbox has a few at most.
constexpr int kStorageThreads = 16;
// Less than the service manager's patience with an end.
constexpr std::chrono::seconds kDetachLimit{5};

// Everything the daemon consists of, in the order in which it is made.
struct Daemon {
  explicit Daemon(Options o)
      : options(std::move(o)),
        io(kEventThreads),
        strand(asio::make_strand(io)),
        signals(strand, SIGTERM, SIGINT, SIGHUP),
        end(strand),
        blocking(kBlockingThreads),
        storage_pool(kStorageThreads),
        uids(options.config.vm.uid_base, options.config.vm.uid_count),
        manager(&environment) {}

  absl::Status Make();
  absl::Status MakeMetrics();

  Options options;
  asio::io_context io;
  asio::strand<asio::io_context::executor_type> strand;
  asio::signal_set signals;
  // A signal, or a start that failed.
  AsyncFlag end;
  asio::thread_pool blocking;
  asio::thread_pool storage_pool;
  UidPool uids;
  std::unique_ptr<CgroupManager> cgroups;
  std::unique_ptr<NetworkManager> network;
  std::unique_ptr<ContainerStorage> storage;
  std::unique_ptr<ContainerdClient> containerd;
  std::unique_ptr<SupervisorLauncher> supervisors;
  std::unique_ptr<GuestDialer> guests;
  std::unique_ptr<SharedDirectory> shared;
  ChosenVmm vmm;
  Environment environment;
  SandboxManager manager;
  UniqueFd lock;
  std::unique_ptr<ControllerServer> server;
  // Only if they are to be had.
  std::unique_ptr<PrometheusMetrics> metrics;
  std::unique_ptr<HttpServer> metrics_server;
};

// What VMs are started with is a link to the version that is installed: a daemon keeps to the one
// it was started with, also after a newer one has been put beside it.
std::string ResolveOnce(const std::string& path) {
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::canonical(path, error);
  return error ? path : resolved.string();
}

absl::Status Daemon::Make() {
  options.config.vm.vmm_9p_path = ResolveOnce(options.config.vm.vmm_9p_path);
  const Config& config = options.config;
  MAGNETAR_RETURN_IF_ERROR(MakeRunDirectory(config.run_dir));
  absl::StatusOr<UniqueFd> locked = LockRunDirectory(config.run_dir);
  if (!locked.ok()) return locked.status();
  lock = *std::move(locked);
  absl::StatusOr<std::unique_ptr<CgroupManager>> made_cgroups = CreateCgroupManager();
  if (!made_cgroups.ok()) return made_cgroups.status();
  cgroups = *std::move(made_cgroups);
  network = CreateNetworkManager();
  storage = ContainerStorage::Create();
  containerd = ContainerdClient::Create(config.containerd.address);
  supervisors = NewSupervisorLauncher(ResolveOnce(config.vm.supervisor_path), &blocking);
  guests = NewGuestDialer();
  shared = NewSharedDirectory();
  absl::StatusOr<ChosenVmm> chosen = ChooseVmm(config);
  if (!chosen.ok()) return chosen.status();
  vmm = *std::move(chosen);

  environment.config = config;
  environment.io = &io;
  environment.blocking = &blocking;
  environment.storage_pool = &storage_pool;
  environment.cgroups = cgroups.get();
  environment.network = network.get();
  environment.storage = storage.get();
  environment.containerd = containerd.get();
  environment.supervisors = supervisors.get();
  environment.guests = guests.get();
  environment.shared = shared.get();
  environment.uids = &uids;
  environment.driver = vmm.driver.get();
  environment.transport = vmm.transport;
  return MakeMetrics();
}

absl::Status Daemon::MakeMetrics() {
  const std::string& address = options.config.metrics.address;
  if (address.empty()) return absl::OkStatus();
  absl::StatusOr<UniqueFd> listener = ListenForMetrics(address);
  if (!listener.ok()) return Annotate(listener.status(), "metrics.address");
  metrics = PrometheusMetrics::Create(
      {MAGNETAR_VERSION, std::string(vmm.driver->name()), vmm.acceleration});
  metrics->Add(std::make_shared<ProcessCollector>());
  metrics->Add(std::make_shared<SandboxCollector>(&manager));
  environment.metrics = metrics.get();
  metrics_server = std::make_unique<HttpServer>(io.get_executor(), *std::move(listener),
                                                [this] { return metrics->Text(); });
  return absl::OkStatus();
}

void ReloadLogLevel(const Options& options) {
  const absl::StatusOr<Config> config = ReadConfigFile(options.config_file);
  if (!config.ok()) {
    Log(LogLevel::kError, "configuration not read again", {{"error", config.status().ToString()}});
    return;
  }
  // The command line goes before the file, now as at the start.
  const std::string& level = options.log_level.empty() ? config->log_level : options.log_level;
  SetLogLevel(level);
  Log(LogLevel::kInfo, "log level", {{"level", level}});
}

// SIGTERM and SIGINT end the daemon; SIGHUP reads the log level again.
Co<void> WatchSignals(Daemon* daemon) {
  while (true) {
    auto wait = daemon->signals.async_wait(asio::as_tuple(asio::use_awaitable));
    const auto [error, signal] = co_await std::move(wait);
    if (error || signal != SIGHUP) break;
    ReloadLogLevel(daemon->options);
  }
  daemon->end.Set();
}

// containerd tells nobody which sandboxes it has forgotten: it is asked now and then.
Co<void> SweepOrphans(Daemon* daemon) {
  const auto age = daemon->options.config.containerd.orphan_after;
  if (age.count() == 0) co_return;
  const auto period =
      std::clamp<std::chrono::seconds>(age / 2, std::chrono::seconds(1), std::chrono::seconds(30));
  asio::steady_timer timer(daemon->strand);
  while (true) {
    timer.expires_after(period);
    auto wait = timer.async_wait(asio::as_tuple(asio::use_awaitable));
    co_await std::move(wait);
    auto sweep = daemon->manager.SweepOrphans();
    co_await std::move(sweep);
  }
}

Co<absl::Status> ComeUp(Daemon* daemon) {
  auto recover = daemon->manager.Recover();
  const absl::Status recovered = co_await std::move(recover);
  if (!recovered.ok()) co_return recovered;
  auto start = RunBlocking(daemon->blocking, [daemon] {
    return ControllerServer::Start(&daemon->environment, &daemon->manager);
  });
  absl::StatusOr<std::unique_ptr<ControllerServer>> server = co_await std::move(start);
  if (!server.ok()) co_return server.status();
  daemon->server = *std::move(server);
  // systemd starts containerd after this: by then each guest answers or is gone.
  auto guests = daemon->manager.RecoverGuests();
  co_await std::move(guests);
  if (daemon->end.is_set()) co_return absl::OkStatus();
  Log(LogLevel::kInfo, "listening",
      {{"socket", daemon->options.config.listen},
       {"vmm", std::string(daemon->vmm.driver->name())},
       {"acceleration", daemon->vmm.acceleration},
       {"version", MAGNETAR_VERSION}});
  ::sd_notify(0, "READY=1");
  asio::co_spawn(daemon->strand, SweepOrphans(daemon), asio::detached);
  co_return absl::OkStatus();
}

// Tells the service manager that operations go on: one that waits for this gets its turn on the
// strand. Without a watchdog there is nobody to tell.
Co<void> FeedWatchdog(Daemon* daemon) {
  uint64_t limit_us = 0;
  if (::sd_watchdog_enabled(0, &limit_us) <= 0) co_return;
  asio::steady_timer timer(daemon->strand);
  while (true) {
    ::sd_notify(0, "WATCHDOG=1");
    timer.expires_after(std::chrono::microseconds(limit_us / 3));
    auto wait = timer.async_wait(asio::as_tuple(asio::use_awaitable));
    co_await std::move(wait);
  }
}

absl::Status FromException(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat("exception: ", e.what()));
  } catch (...) {
    return absl::InternalError("exception");
  }
}

// From the first signal handler to the last answer. What hangs while the daemon comes up, a guest
// that takes its time for example, does not keep it from ending.
Co<absl::Status> Run(Daemon* daemon) {
  auto failure = std::make_shared<absl::Status>();
  asio::co_spawn(daemon->strand, WatchSignals(daemon), asio::detached);
  asio::co_spawn(daemon->strand, FeedWatchdog(daemon), asio::detached);
  asio::co_spawn(
      daemon->strand, ComeUp(daemon),
      asio::bind_executor(daemon->strand, [daemon, failure](const std::exception_ptr& error,
                                                            const absl::Status& status) {
        *failure = error != nullptr ? FromException(error) : status;
        if (!failure->ok()) daemon->end.Set();
      }));
  auto end = daemon->end.Wait();
  co_await std::move(end);
  if (!failure->ok()) co_return *failure;
  ::sd_notify(0, "STOPPING=1");
  Log(LogLevel::kInfo, "ending; sandboxes go on");
  // containerd asks again for what is answered with UNAVAILABLE.
  auto detach = daemon->manager.DetachAll(kDetachLimit);
  co_await std::move(detach);
  auto stop = RunBlocking(daemon->blocking, [daemon] {
    if (daemon->server != nullptr) daemon->server->Stop();
    return true;
  });
  co_await std::move(stop);
  co_return absl::OkStatus();
}

}  // namespace

int RunDaemon(Options options) {
  ::umask(0077);
  // One heap for all threads: pods come and go, and each thread's own would keep its peak.
  ::mallopt(M_ARENA_MAX, 2);
  ::signal(SIGPIPE, SIG_IGN);
  SetLogLevel(options.config.log_level);
  SetFailpoints(options.config.debug.failpoints);
  // Never destroyed: what matters lies on disk, and sandboxes go on without the daemon. Taking
  // operations apart that wait for their VMs gains nothing, and a thread that hangs in one
  // would be waited for.
  auto* daemon = new Daemon(std::move(options));
  if (absl::Status status = daemon->Make(); !status.ok()) {
    Log(LogLevel::kError, "cannot start", {{"error", status.ToString()}});
    return 1;
  }
  asio::co_spawn(daemon->strand, Run(daemon),
                 [](const std::exception_ptr& error, const absl::Status& status) {
                   const absl::Status end = error != nullptr ? FromException(error) : status;
                   if (!end.ok()) {
                     Log(LogLevel::kError, "cannot go on", {{"error", end.ToString()}});
                     std::_Exit(1);
                   }
                   Log(LogLevel::kInfo, "ended");
                   std::_Exit(0);
                 });
  for (int i = 1; i < kEventThreads; ++i) std::thread([daemon] { daemon->io.run(); }).detach();
  daemon->io.run();
  return 1;  // it always has something to wait for
}

}  // namespace magnetar::daemon
