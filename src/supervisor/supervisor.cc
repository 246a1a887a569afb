#include "src/supervisor/supervisor.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <cerrno>
#include <chrono>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/supervisor/attempt.h"
#include "src/supervisor/confine.h"
#include "src/supervisor/control_server.h"
#include "src/supervisor/exit_file.h"
#include "src/supervisor/forward_server.h"
#include "src/supervisor/guest_link.h"
#include "src/supervisor/guest_stream.h"
#include "src/supervisor/hybrid_server.h"
#include "src/supervisor/idle_trim.h"
#include "src/supervisor/machine.h"
#include "src/supervisor/outputs.h"
#include "src/supervisor/service.h"

namespace magnetar::supervisor {
namespace {

// For answering the last calls of a daemon that does not read.
constexpr std::chrono::seconds kDrainGrace{1};

// Between the end of a VMM's descriptors and its own.
constexpr std::chrono::seconds kDeathRattle{1};

absl::Status PrepareProcess() {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "become a subreaper");
  }
  ::prctl(PR_SET_NAME, "vmm-supervisor", 0, 0, 0);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  // Each guest connection takes up to four descriptors.
  rlimit files;
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  return absl::OkStatus();
}

Co<void> AwaitReady(GuestLink& link, Machine& machine, IdleTrim& trim) {
  auto ready = link.Ready();
  absl::Status status = co_await std::move(ready);
  if (status.ok()) {
    machine.SetReady();
    trim.Activity();
  } else if (!machine.ending().is_open()) {
    machine.Log(absl::StrCat("the guest will not become ready: ", status.message()));
  }
}

Co<absl::StatusOr<bool>> AwaitEnding(Machine& machine) {
  auto ending = machine.ending().Wait();
  co_await std::move(ending);
  co_return true;
}

// A channel to the guest that ends is worth a line, but not when it ends with the VM, which is
// noticed a moment later.
Co<void> LogUnlessEnding(Machine& machine, std::string line) {
  auto wait = Bounded({.limit = kDeathRattle}, AwaitEnding(machine));
  const absl::StatusOr<bool> ending = co_await std::move(wait);
  if (!ending.ok()) machine.Log(line);
}

// A guest that is lost answers nobody: connections to it are refused from now on, however long
// its processes take to end.
Co<void> CloseAtTheEnd(Machine& machine, std::function<void()> close_guest) {
  auto ending = machine.ending().Wait();
  co_await std::move(ending);
  close_guest();
}

Co<void> RunToEnd(Machine& machine, ControlServer& control, asio::io_context& context) {
  auto run = machine.Run();
  co_await std::move(run);
  auto drain = control.Drain(kDrainGrace);
  co_await std::move(drain);
  context.stop();
}

// The VMM's user owns what this VM may touch anyway.
Confinement ConfinementOf(const v1::Launch& launch) {
  Confinement confinement{.vsock = launch.transport().has_kernel_vsock()};
  for (const v1::Process& process : launch.processes()) {
    if (!process.vmm()) continue;
    confinement.uid = process.uid();
    confinement.gid = process.gid();
  }
  return confinement;
}

}  // namespace

absl::Status RunSupervisor(const v1::Launch& launch) {
  MAGNETAR_RETURN_IF_ERROR(PrepareProcess());
  asio::io_context context(1);
  auto executor = context.get_executor();
  auto exit_file = ExitFile::Create(launch.directory());
  if (!exit_file.ok()) return exit_file.status();
  Machine machine(executor, launch, *std::move(exit_file));
  IdleTrim trim(executor);

  UniqueFd control_fd(launch.control_listener_fd());
  MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(control_fd.get()));
  auto calls = std::make_shared<Calls>(executor);
  ControlServer control(executor, std::move(control_fd), MakeSupervisorService(machine, calls),
                        calls, trim);

  const auto log = [&context, &machine](const std::string& line) {
    asio::co_spawn(context, LogUnlessEnding(machine, line), asio::detached);
  };
  auto link = MakeGuestLink(executor, launch.transport(), log);
  if (!link.ok()) return link.status();

  AsyncFd vsock_listener(executor);
  AsyncFd forward_listener(executor);
  if (*link != nullptr) {
    MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(launch.vsock_listener_fd()));
    vsock_listener.assign(launch.vsock_listener_fd());
    if (launch.forward_listener_fd() > 0) {
      MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(launch.forward_listener_fd()));
      forward_listener.assign(launch.forward_listener_fd());
    }
  }

  KillWatch kills(
      std::chrono::seconds(launch.unkillable_after_seconds()),
      [&machine](const std::string& reason) { machine.Kill(reason, /*unkillable=*/true); });

  asio::signal_set signals(context, SIGTERM, SIGINT);
  signals.async_wait([&machine](boost::system::error_code error, int) {
    if (!error) machine.Kill("killed with its supervisor");
  });

  machine.Start();
  if (absl::Status s = Confine(ConfinementOf(launch)); !s.ok()) {
    machine.Kill(absl::StrCat("vmm-supervisor cannot give up its privileges: ", s.message()));
  }

  // A machine whose streams nobody could open would only seem to live.
  const auto end_with = [&machine](std::string what) {
    return [&machine, what = std::move(what)](std::exception_ptr, absl::Status status) {
      if (!status.ok()) machine.Kill(absl::StrCat(what, ": ", status.message()));
    };
  };
  if (*link != nullptr) {
    const GuestAccess access{.link = *link,
                             .ready = &machine.ready(),
                             .ready_or_ending = &machine.ready_or_ending(),
                             .trim = &trim,
                             .outputs = std::make_shared<Outputs>(executor, *link, log),
                             .kills = &kills};
    asio::co_spawn(context, ServeHybrid(vsock_listener, access), end_with("vm.vsock"));
    if (forward_listener.is_open()) {
      asio::co_spawn(context, ServeForward(forward_listener, access, launch.forward_port()),
                     end_with("port forwarding"));
    }
    for (const v1::GuestStream& stream : launch.guest_streams()) {
      MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(stream.fd()));
      asio::co_spawn(context, ServeGuestStream(UniqueFd(stream.fd()), stream.port(), access),
                     end_with(absl::StrCat("the stream to port ", stream.port())));
    }
    asio::co_spawn(context, AwaitReady(**link, machine, trim), asio::detached);
  }
  auto close_guest = [&] {
    vsock_listener.close();
    forward_listener.close();
    if (*link != nullptr) (*link)->Close();
  };
  asio::co_spawn(context, CloseAtTheEnd(machine, close_guest), asio::detached);
  asio::co_spawn(context, control.Run(), end_with("supervisor.sock"));
  asio::co_spawn(context, RunToEnd(machine, control, context), asio::detached);
  context.run();
  return absl::OkStatus();
}

}  // namespace magnetar::supervisor
