#include "guest-agent/pod/pid_namespace.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

absl::StatusOr<pid_t> StartPidNamespace(const std::string& binary, const std::string& path) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(path.substr(0, path.rfind('/')), 0755));
  const UniqueFd target(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0444));
  if (!target.ok()) return ErrnoStatus(errno, path);
  const char* const argv[] = {"pause", kPauseArgument, nullptr};
  const char* const envp[] = {nullptr};
  clone_args args = {};
  args.flags = CLONE_NEWPID;
  args.exit_signal = SIGCHLD;
  const auto pid = static_cast<pid_t>(::syscall(SYS_clone3, &args, sizeof(args)));
  if (pid < 0) return ErrnoStatus(errno, "pid namespace");
  if (pid == 0) {
    // Nothing but system calls: another thread may have held any lock.
    ::execve(binary.c_str(), const_cast<char* const*>(argv), const_cast<char* const*>(envp));
    ::_exit(127);
  }
  const std::string ns = absl::StrCat("/proc/", pid, "/ns/pid");
  if (::mount(ns.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("bind ", ns, " to ", path));
    ::kill(pid, SIGKILL);
    return status;
  }
  return pid;
}

void PauseMain() {
  ::prctl(PR_SET_NAME, "pause");
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_BLOCK, &all, nullptr);
  while (true) {
    int signal = 0;
    ::sigwait(&all, &signal);
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
  }
}

}  // namespace magnetar::guest
