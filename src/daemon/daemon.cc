#include "src/daemon/daemon.h"

#include <malloc.h>
#include <signal.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <exception>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/choose_vmm.h"
#include "src/daemon/config/log.h"
#include "src/daemon/controller/server.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/manager.h"
#include "src/daemon/sandbox/supervisor_launch.h"

namespace magnetar::daemon {
namespace {

// Everything that happens on them is short; blocking work has a pool of its own.
constexpr int kEventThreads = 2;
constexpr int kBlockingThreads = 8;

// Everything the daemon consists of, in the order in which it is made.
struct Daemon {
  explicit Daemon(Options o)
      : options(std::move(o)),
        io(kEventThreads),
        strand(asio::make_strand(io)),
        blocking(kBlockingThreads),
        uids(options.config.vm.uid_base, options.config.vm.uid_count),
        manager(&environment) {}

  absl::Status Make();

  Options options;
  asio::io_context io;
  asio::strand<asio::io_context::executor_type> strand;
  asio::thread_pool blocking;
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
};

absl::Status MakeRunDirectory(const std::string& path) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(path, 0711));
  // 0711: VMMs, each under a uid of its own, reach their directories below.
  if (::chmod(path.c_str(), 0711) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return absl::OkStatus();
}

// The supervisor's path is a link to the version that is installed: a daemon keeps to the one it
// was started with, also after a newer one has been put beside it.
std::string ResolveOnce(const std::string& path) {
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::canonical(path, error);
  return error ? path : resolved.string();
}

absl::Status Daemon::Make() {
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
  return absl::OkStatus();
}

void ReloadLogLevel(const std::string& file) {
  const absl::StatusOr<Config> config = ReadConfigFile(file);
  if (!config.ok()) {
    Log(LogLevel::kError, "configuration not read again", {{"error", config.status().ToString()}});
    return;
  }
  SetLogLevel(config->log_level);
  Log(LogLevel::kInfo, "log level", {{"level", config->log_level}});
}

// Completes at SIGTERM or SIGINT; SIGHUP reads the log level again.
Co<void> WaitForEnd(Daemon* daemon) {
  asio::signal_set signals(daemon->strand, SIGTERM, SIGINT, SIGHUP);
  while (true) {
    auto wait = signals.async_wait(asio::as_tuple(asio::use_awaitable));
    const auto [error, signal] = co_await std::move(wait);
    if (error) co_return;
    if (signal != SIGHUP) co_return;
    ReloadLogLevel(daemon->options.config_file);
  }
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

Co<absl::Status> Run(Daemon* daemon) {
  auto recover = daemon->manager.Recover();
  co_await std::move(recover);
  auto start = RunBlocking(daemon->blocking, [daemon] {
    return ControllerServer::Start(&daemon->environment, &daemon->manager);
  });
  absl::StatusOr<std::unique_ptr<ControllerServer>> server = co_await std::move(start);
  if (!server.ok()) co_return server.status();
  daemon->server = *std::move(server);
  // systemd starts containerd after this: by then each guest answers or is gone.
  auto guests = daemon->manager.RecoverGuests();
  co_await std::move(guests);
  Log(LogLevel::kInfo, "listening",
      {{"socket", daemon->options.config.listen},
       {"vmm", std::string(daemon->vmm.driver->name())},
       {"acceleration", daemon->vmm.acceleration},
       {"version", MAGNETAR_VERSION}});
  ::sd_notify(0, "READY=1");
  asio::co_spawn(daemon->strand, SweepOrphans(daemon), asio::detached);

  auto end = WaitForEnd(daemon);
  co_await std::move(end);
  ::sd_notify(0, "STOPPING=1");
  Log(LogLevel::kInfo, "ending; sandboxes go on");
  // containerd asks again for what is answered with UNAVAILABLE.
  auto detach = daemon->manager.DetachAll();
  co_await std::move(detach);
  auto stop = RunBlocking(daemon->blocking, [daemon] {
    daemon->server->Stop();
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
  Daemon daemon(std::move(options));
  if (absl::Status status = daemon.Make(); !status.ok()) {
    Log(LogLevel::kError, "cannot start", {{"error", status.ToString()}});
    return 1;
  }
  int code = 0;
  asio::co_spawn(daemon.strand, Run(&daemon),
                 [&](const std::exception_ptr& error, const absl::Status& status) {
                   if (error != nullptr || !status.ok()) {
                     Log(LogLevel::kError, "cannot go on", {{"error", status.ToString()}});
                     code = 1;
                   }
                   daemon.io.stop();
                 });
  std::vector<std::thread> threads;
  for (int i = 1; i < kEventThreads; ++i) threads.emplace_back([&] { daemon.io.run(); });
  daemon.io.run();
  for (std::thread& thread : threads) thread.join();
  if (code == 0) Log(LogLevel::kInfo, "ended");
  return code;
}

}  // namespace magnetar::daemon
