#include "src/daemon/sandbox/supervisor_launch.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/child_process.h"
#include "magnetar/status.h"
#include "magnetar/supervisor_launch.h"
#include "magnetar/unix_socket.h"

namespace magnetar::daemon {
namespace {

// The listeners are closed here on return, so that a dead supervisor's peers are refused.
absl::StatusOr<ChildProcess> ListenAndStart(const std::string& program,
                                            supervisor::v1::Launch launch) {
  absl::StatusOr<UniqueFd> control =
      ListenUnix(absl::StrCat(launch.directory(), "/supervisor.sock"));
  if (!control.ok()) return control.status();
  launch.set_control_listener_fd(control->get());
  absl::StatusOr<UniqueFd> vsock = UniqueFd();
  if (!launch.transport().has_native()) {
    vsock = ListenUnix(absl::StrCat(launch.directory(), "/vm.vsock"));
    if (!vsock.ok()) return vsock.status();
    launch.set_vsock_listener_fd(vsock->get());
  }
  return StartSupervisor(program, std::move(launch));
}

Co<void> Reap(ChildProcess child) {
  auto wait = child.Wait();
  (void)co_await std::move(wait);
}

class RealSupervisorLauncher : public SupervisorLauncher {
 public:
  RealSupervisorLauncher(std::string program, asio::thread_pool* blocking)
      : program_(std::move(program)), blocking_(blocking) {}

  Co<absl::StatusOr<std::shared_ptr<SupervisorClient>>> Launch(supervisor::v1::Launch launch,
                                                               Spawned spawned) override {
    const std::string directory = launch.directory();
    auto start = [program = program_, launch = std::move(launch)] {
      return ListenAndStart(program, launch);
    };
    auto task = RunBlocking(*blocking_, std::move(start));
    absl::StatusOr<ChildProcess> child = co_await std::move(task);
    if (!child.ok()) co_return child.status();
    const absl::StatusOr<ProcessIdentity> identity = IdentifyProcess(child->pid());
    // Whoever comes later finds it by its socket; only this daemon must reap it.
    const asio::any_io_executor executor = co_await asio::this_coro::executor;
    asio::co_spawn(executor, Reap(*std::move(child)), asio::detached);
    // One that has ended already is found out by whoever talks to it.
    absl::Status told = absl::IsNotFound(identity.status()) ? absl::OkStatus() : identity.status();
    if (identity.ok()) told = spawned(*identity);
    if (!told.ok()) co_return told;
    auto connect = Connect(directory);
    absl::StatusOr<std::shared_ptr<SupervisorClient>> client = co_await std::move(connect);
    co_return client;
  }

  Co<absl::StatusOr<std::shared_ptr<SupervisorClient>>> Connect(std::string directory) override {
    absl::StatusOr<UniqueFd> socket = ConnectUnix(absl::StrCat(directory, "/supervisor.sock"));
    if (!socket.ok()) co_return socket.status();
    const asio::any_io_executor executor = co_await asio::this_coro::executor;
    co_return NewSupervisorClient(executor, *std::move(socket));
  }

 private:
  std::string program_;
  asio::thread_pool* blocking_;
};

}  // namespace

std::unique_ptr<SupervisorLauncher> NewSupervisorLauncher(std::string program,
                                                          asio::thread_pool* blocking) {
  return std::make_unique<RealSupervisorLauncher>(std::move(program), blocking);
}

}  // namespace magnetar::daemon
