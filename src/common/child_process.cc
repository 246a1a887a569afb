#include "magnetar/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar {
namespace {

absl::StatusOr<UniqueFd> PidfdOpen(pid_t pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("pidfd_open ", pid));
  return fd;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  out.reserve(strings.size() + 1);
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

}  // namespace

absl::Status SignalProcess(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0 || errno == ESRCH) {
    return absl::OkStatus();
  }
  return ErrnoStatus(errno, "pidfd_send_signal");
}

Co<absl::Status> WaitUntilEnded(int pidfd) {
  UniqueFd copy(::fcntl(pidfd, F_DUPFD_CLOEXEC, 0));
  if (!copy.ok()) co_return ErrnoStatus(errno, "duplicate a pidfd");
  auto executor = co_await asio::this_coro::executor;
  asio::posix::stream_descriptor descriptor(executor, copy.release());
  auto wait = descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                                    asio::as_tuple(asio::use_awaitable));
  auto [error] = co_await std::move(wait);
  if (error) co_return absl::CancelledError(absl::StrCat("wait for a process: ", error.message()));
  co_return absl::OkStatus();
}

std::string ExitStatus::Describe() const {
  if (signal == 0) return absl::StrCat("exited with status ", status);
  const char* name = ::sigabbrev_np(signal);
  if (name == nullptr) return absl::StrCat("killed by signal ", signal);
  return absl::StrCat("killed by SIG", name);
}

absl::StatusOr<ExitStatus> ChildProcess::Reap() {
  int status = 0;
  pid_t pid;
  do {
    pid = ::waitpid(pid_, &status, 0);
  } while (pid < 0 && errno == EINTR);
  if (pid < 0) return ErrnoStatus(errno, absl::StrCat("waitpid ", pid_));
  pidfd_.reset();
  ExitStatus exit;
  if (WIFSIGNALED(status)) {
    exit.signal = WTERMSIG(status);
    exit.status = 128 + static_cast<uint32_t>(exit.signal);
  } else {
    exit.status = static_cast<uint32_t>(WEXITSTATUS(status));
  }
  return exit;
}

Co<absl::StatusOr<ExitStatus>> ChildProcess::Wait() {
  auto ended = WaitUntilEnded(pidfd_.get());
  absl::Status status = co_await std::move(ended);
  if (!status.ok()) co_return status;
  co_return Reap();
}

absl::StatusOr<ExitStatus> ChildProcess::WaitBlocking() { return Reap(); }

absl::StatusOr<ChildProcess> Spawn(const SpawnOptions& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("spawn: no program");
  const std::string& program = options.argv[0];

  int highest = STDERR_FILENO;
  for (const FdMapping& m : options.descriptors) highest = std::max(highest, m.target);
  // Copies above every target, so that no dup2 closes a source that is still to come.
  std::vector<UniqueFd> copies;
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  absl::Cleanup destroy_actions = [&] { ::posix_spawn_file_actions_destroy(&actions); };
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    ::posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
  }
  std::vector<int> kept;
  for (const FdMapping& m : options.descriptors) {
    UniqueFd copy(::fcntl(m.source, F_DUPFD_CLOEXEC, highest + 1));
    if (!copy.ok()) {
      return ErrnoStatus(errno, absl::StrCat("start ", program, ": descriptor ", m.source));
    }
    ::posix_spawn_file_actions_adddup2(&actions, copy.get(), m.target);
    if (m.target > STDERR_FILENO) kept.push_back(m.target);
    copies.push_back(std::move(copy));
  }
  // Close the gaps between the targets, then everything above.
  std::sort(kept.begin(), kept.end());
  int next = STDERR_FILENO + 1;
  for (const int fd : kept) {
    for (; next < fd; ++next) ::posix_spawn_file_actions_addclose(&actions, next);
    next = fd + 1;
  }
  ::posix_spawn_file_actions_addclosefrom_np(&actions, next);

  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  absl::Cleanup destroy_attributes = [&] { ::posix_spawnattr_destroy(&attributes); };
  sigset_t none, all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
  if (options.new_session) flags = static_cast<short>(flags | POSIX_SPAWN_SETSID);
  ::posix_spawnattr_setflags(&attributes, flags);

  const std::vector<char*> argv = Pointers(options.argv);
  const std::vector<char*> env = Pointers(options.env);
  pid_t pid = 0;
  const int err =
      ::posix_spawn(&pid, program.c_str(), &actions, &attributes, argv.data(), env.data());
  if (err != 0) return ErrnoStatus(err, absl::StrCat("start ", program));
  auto pidfd = PidfdOpen(pid);
  if (!pidfd.ok()) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return Annotate(pidfd.status(), absl::StrCat("start ", program));
  }
  return ChildProcess(pid, *std::move(pidfd));
}

}  // namespace magnetar
