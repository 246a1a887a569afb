#include "guest-agent/pod/pid_namespace.h"

#include <fcntl.h>
#include <linux/capability.h>
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
namespace {

// Nobody's, as that of Kubernetes' own pause.
constexpr int kPauseId = 65534;

// Between clone and exec nothing but system calls: another thread of the parent may have
// held any lock. All of these return 0 or set errno.

// A root of its own with nothing in it, mounted over `directory`.
bool EnterEmptyRoot(const char* directory) {
  return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("pause", directory, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
                 "mode=0555,size=4k") == 0 &&
         ::chdir(directory) == 0 && ::syscall(SYS_pivot_root, ".", ".") == 0 &&
         ::umount2(".", MNT_DETACH) == 0 && ::chdir("/") == 0 &&
         ::mount(nullptr, "/", nullptr,
                 MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) == 0;
}

bool DropPrivileges() {
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0) return false;
  }
  // glibc's own would ask the other threads along, which are not in this process.
  if (::syscall(SYS_setgroups, 0, nullptr) != 0 ||
      ::syscall(SYS_setresgid, kPauseId, kPauseId, kPauseId) != 0 ||
      ::syscall(SYS_setresuid, kPauseId, kPauseId, kPauseId) != 0) {
    return false;
  }
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  return ::syscall(SYS_capset, &header, none) == 0 && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

// Returns only if it fails, with errno set.
void BecomePause(const char* directory, int binary) {
  // The agent's console is not the containers'.
  for (int fd = 0; fd < 3; ++fd) ::close(fd);
  if (!EnterEmptyRoot(directory) || !DropPrivileges()) return;
  const char* const argv[] = {"pause", kPauseArgument, nullptr};
  const char* const envp[] = {nullptr};
  ::syscall(SYS_execveat, binary, "", argv, envp, AT_EMPTY_PATH);
}

}  // namespace

absl::StatusOr<pid_t> StartPidNamespace(const std::string& binary, const std::string& path) {
  const std::string directory = path.substr(0, path.rfind('/'));
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(directory, 0755));
  const UniqueFd target(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0444));
  if (!target.ok()) return ErrnoStatus(errno, path);
  const UniqueFd program(::open(binary.c_str(), O_PATH | O_CLOEXEC));
  if (!program.ok()) return ErrnoStatus(errno, binary);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pid namespace");
  const UniqueFd told(ends[0]);
  UniqueFd teller(ends[1]);
  clone_args args = {};
  args.flags = CLONE_NEWPID | CLONE_NEWNS;
  args.exit_signal = SIGCHLD;
  const auto pid = static_cast<pid_t>(::syscall(SYS_clone3, &args, sizeof(args)));
  if (pid < 0) return ErrnoStatus(errno, "pid namespace");
  if (pid == 0) {
    BecomePause(directory.c_str(), program.get());
    const int error = errno;
    const ssize_t written = ::write(teller.get(), &error, sizeof(error));
    static_cast<void>(written);
    ::_exit(127);
  }
  teller.reset();
  // Until it is a stranger to the agent, no container may see it. The exec closes the pipe.
  int error = 0;
  ssize_t n = 0;
  do {
    n = ::read(told.get(), &error, sizeof(error));
  } while (n < 0 && errno == EINTR);
  if (n != 0) return ErrnoStatus(n > 0 ? error : errno, "pid namespace's first process");
  const std::string ns = absl::StrCat("/proc/", pid, "/ns/pid");
  if (::mount(ns.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("bind ", ns, " to ", path));
    ::kill(pid, SIGKILL);
    return status;
  }
  return pid;
}

absl::Status BindPidNamespace(int pidfd, pid_t pid, const std::string& path) {
  const std::string name = absl::StrCat("/proc/", pid, "/ns/pid");
  const UniqueFd ns(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
  const int error = errno;
  // Whatever was opened, it was this process's if that is still there.
  if (::syscall(SYS_pidfd_send_signal, pidfd, 0, nullptr, 0) != 0) {
    return absl::NotFoundError("the process has ended");
  }
  if (!ns.ok()) return ErrnoStatus(error, name);
  const UniqueFd place(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!place.ok()) return ErrnoStatus(errno, path);
  if (::mount(absl::StrCat("/proc/self/fd/", ns.get()).c_str(), path.c_str(), nullptr, MS_BIND,
              nullptr) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind ", name, " to ", path));
  }
  return absl::OkStatus();
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
