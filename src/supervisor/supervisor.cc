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
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/supervisor/control_server.h"
#include "src/supervisor/forward_server.h"
#include "src/supervisor/guest_link.h"
#include "src/supervisor/hybrid_server.h"
#include "src/supervisor/idle_trim.h"
#include "src/supervisor/machine.h"
#include "src/supervisor/service.h"

namespace magnetar::supervisor {
namespace {

// For answering the last calls of a daemon that does not read.
constexpr std::chrono::seconds kDrainGrace{1};

absl::Status PrepareProcess() {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "become a subreaper");
  }
  ::prctl(PR_SET_NAME, "vmm-supervisor", 0, 0, 0);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  // Each guest connection takes three descriptors.
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
  } else if (!machine.ended().is_open()) {
    machine.Log(absl::StrCat("the guest will not become ready: ", status.message()));
  }
}

Co<void> RunToEnd(Machine& machine, ControlServer& control, asio::io_context& context,
                  std::function<void()> close_guest) {
  auto run = machine.Run();
  co_await std::move(run);
  close_guest();
  auto drain = control.Drain(kDrainGrace);
  co_await std::move(drain);
  context.stop();
}

}  // namespace

absl::Status RunSupervisor(const v1::Launch& launch) {
  MAGNETAR_RETURN_IF_ERROR(PrepareProcess());
  asio::io_context context(1);
  auto executor = context.get_executor();
  Machine machine(executor, launch);
  IdleTrim trim(executor);

  UniqueFd control_fd(launch.control_listener_fd());
  MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(control_fd.get()));
  ControlServer control(executor, std::move(control_fd), MakeSupervisorService(machine), trim);

  auto link = MakeGuestLink(executor, launch.transport(), [&machine](const std::string& line) {
    if (!machine.ended().is_open()) machine.Log(line);
  });
  if (!link.ok()) return link.status();

  AsyncFd vsock_listener(executor);
  AsyncFd forward_listener(executor);
  if (*link != nullptr) {
    const GuestAccess access{.link = *link, .ready = &machine.ready(), .trim = &trim};
    MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(launch.vsock_listener_fd()));
    vsock_listener.assign(launch.vsock_listener_fd());
    asio::co_spawn(context, ServeHybrid(vsock_listener, access), asio::detached);
    if (launch.forward_listener_fd() > 0) {
      MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(launch.forward_listener_fd()));
      forward_listener.assign(launch.forward_listener_fd());
      asio::co_spawn(context, ServeForward(forward_listener, access, launch.forward_port()),
                     asio::detached);
    }
    asio::co_spawn(context, AwaitReady(**link, machine, trim), asio::detached);
  }

  asio::signal_set signals(context, SIGTERM, SIGINT);
  signals.async_wait([&machine](boost::system::error_code error, int) {
    if (!error) machine.Kill("killed with its supervisor");
  });

  auto close_guest = [&] {
    vsock_listener.close();
    forward_listener.close();
    if (*link != nullptr) (*link)->Close();
    for (const char* name : {"vm.vsock", "supervisor.sock"}) {
      absl::Status s = RemoveFile(absl::StrCat(launch.directory(), "/", name));
      if (!s.ok()) machine.Log(std::string(s.message()));
    }
  };
  asio::co_spawn(context, control.Run(), asio::detached);
  asio::co_spawn(context, RunToEnd(machine, control, context, close_guest), asio::detached);
  context.run();
  return absl::OkStatus();
}

}  // namespace magnetar::supervisor
