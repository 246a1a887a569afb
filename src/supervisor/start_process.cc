#include "src/supervisor/start_process.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/capability_names.h"

namespace magnetar::supervisor {
namespace {

// What the child reports when a step fails.
struct Failure {
  int err;
  char step[32];
};

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

absl::StatusOr<uint64_t> CapabilityMask(const v1::Process& spec) {
  uint64_t mask = 0;
  for (const std::string& name : spec.capabilities()) {
    const std::optional<int> number = CapabilityNumber(name);
    if (!number.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("no capability \"", name, "\""));
    }
    mask |= uint64_t{1} << *number;
  }
  return mask;
}

// The child, from fork to exec. Every step returns false with errno set.
class Child {
 public:
  Child(const v1::Process& spec, uint64_t capabilities, pid_t parent)
      : spec_(spec), capabilities_(capabilities), parent_(parent) {
    for (const std::string& s : spec.argv()) argv_.push_back(const_cast<char*>(s.c_str()));
    for (const std::string& s : spec.env()) env_.push_back(const_cast<char*>(s.c_str()));
    argv_.push_back(nullptr);
    env_.push_back(nullptr);
    for (const v1::Descriptor& d : spec.descriptors()) highest_ = std::max(highest_, d.target());
  }

  [[noreturn]] void Run(int out, int err, int report) {
    struct Step {
      const char* name;
      bool (Child::*run)();
    };
    out_ = out;
    err_ = err;
    report_ = ::fcntl(report, F_DUPFD_CLOEXEC, highest_ + 1);
    static constexpr Step kSteps[] = {
        {"reset signals", &Child::ResetSignals},
        {"enter cgroup", &Child::EnterCgroups},
        {"enter netns", &Child::EnterNetns},
        {"set limits", &Child::SetLimits},
        {"reset oom_score_adj", &Child::ResetOomScore},
        {"pass descriptors", &Child::MoveFds},
        {"drop privileges", &Child::DropPrivileges},
        {"set no_new_privs", &Child::Confine},
        {"exec", &Child::Exec},
    };
    for (const Step& step : kSteps) {
      if ((this->*step.run)()) continue;
      Failure failure{.err = errno, .step = {}};
      ::strncpy(failure.step, step.name, sizeof(failure.step) - 1);
      [[maybe_unused]] const ssize_t n = ::write(report_, &failure, sizeof(failure));
      break;
    }
    ::_exit(127);
  }

 private:
  bool ResetSignals() {
    for (int s = 1; s < NSIG; ++s) ::signal(s, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    return ::sigprocmask(SIG_SETMASK, &none, nullptr) == 0;
  }

  bool EnterCgroups() {
    for (const int fd : spec_.cgroup_procs_fds()) {
      if (::write(fd, "0", 1) != 1) return false;
    }
    return true;
  }

  bool EnterNetns() {
    return spec_.netns_fd() <= 0 || ::setns(spec_.netns_fd(), CLONE_NEWNET) == 0;
  }

  static bool SetLimit(decltype(RLIMIT_NOFILE) which, uint64_t value) {
    if (value == 0) return true;
    rlimit limit{.rlim_cur = value, .rlim_max = value};
    if (::setrlimit(which, &limit) == 0) return true;
    if (errno != EPERM || ::getrlimit(which, &limit) != 0) return false;
    limit.rlim_cur = limit.rlim_max;
    return ::setrlimit(which, &limit) == 0;
  }

  bool SetLimits() {
    return SetLimit(RLIMIT_MEMLOCK, spec_.memlock_bytes()) &&
           SetLimit(RLIMIT_NOFILE, spec_.nofile());
  }

  // What protects the daemon and its supervisors from the OOM killer is not for guests. A value
  // above 0 stays: lowering it takes a privilege that a daemon in a container may not have.
  bool ResetOomScore() {
    UniqueFd fd(::open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC));
    char sign = 0;
    if (!fd.ok() || ::read(fd.get(), &sign, 1) != 1) return false;
    return sign != '-' || ::pwrite(fd.get(), "0", 1, 0) == 1;
  }

  // All sources first go above every target, so that none is overwritten before
  // its turn; what is not a target closes at exec.
  bool MoveFds() {
    std::vector<FdMapping> moves = {{out_, STDOUT_FILENO}, {err_, STDERR_FILENO}};
    for (const v1::Descriptor& d : spec_.descriptors()) moves.push_back({d.source(), d.target()});
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) return false;
    moves.insert(moves.begin(), {null, STDIN_FILENO});
    for (FdMapping& m : moves) {
      m.source = ::fcntl(m.source, F_DUPFD_CLOEXEC, highest_ + 1);
      if (m.source < 0) return false;
    }
    if (::syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) return false;
    for (const FdMapping& m : moves) {
      if (::dup2(m.source, m.target) < 0) return false;
    }
    return true;
  }

  bool DropPrivileges() {
    ::umask(077);
    if (::chdir("/") != 0) return false;
    std::vector<gid_t> groups(spec_.supplementary_gids().begin(), spec_.supplementary_gids().end());
    if (::setgroups(groups.size(), groups.data()) != 0) return false;
    for (int cap = 0; cap < 64; ++cap) {
      if ((capabilities_ >> cap & 1) != 0) continue;
      if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0) continue;
      if (errno == EINVAL) break;  // past the last one that this kernel knows
      return false;
    }
    if (::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0) return false;
    const gid_t gid = spec_.gid();
    const uid_t uid = spec_.uid();
    if (::setresgid(gid, gid, gid) != 0 || ::setresuid(uid, uid, uid) != 0) return false;
    return SetCapabilities();
  }

  bool SetCapabilities() {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct data[2] = {};
    for (int half = 0; half < 2; ++half) {
      const auto bits = static_cast<uint32_t>(capabilities_ >> (32 * half));
      data[half] = {.effective = bits, .permitted = bits, .inheritable = bits};
    }
    if (::syscall(SYS_capset, &header, data) != 0) return false;
    for (int cap = 0; cap < 64; ++cap) {
      // The ambient set is what an exec without file capabilities keeps.
      if ((capabilities_ >> cap & 1) != 0 &&
          ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) != 0) {
        return false;
      }
    }
    return !spec_.capabilities_outlast_uid() ||
           ::prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0;
  }

  bool Confine() {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return false;
    // Only now: a change of uid clears it.
    if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) return false;
    errno = ESRCH;
    return ::getppid() == parent_;
  }

  bool Exec() {
    ::execve(argv_[0], argv_.data(), env_.data());
    return false;
  }

  const v1::Process& spec_;
  const uint64_t capabilities_;
  const pid_t parent_;
  std::vector<char*> argv_, env_;
  int highest_ = STDERR_FILENO;
  int out_ = -1, err_ = -1, report_ = -1;
};

}  // namespace

absl::StatusOr<Started> StartProcess(const v1::Process& spec) {
  if (spec.argv().empty()) return absl::InvalidArgumentError("no program");
  auto capabilities = CapabilityMask(spec);
  if (!capabilities.ok()) return capabilities.status();
  auto out = MakePipe();
  auto err = MakePipe();
  auto report = MakePipe();
  for (const absl::Status& status : {out.status(), err.status(), report.status()}) {
    MAGNETAR_RETURN_IF_ERROR(status);
  }
  MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(out->read.get()));
  MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(err->read.get()));

  Child child(spec, *capabilities, ::getpid());
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) child.Run(out->write.get(), err->write.get(), report->write.get());

  report->write.reset();
  Failure failure{};
  ssize_t n;
  do {
    n = ::read(report->read.get(), &failure, sizeof(failure));
  } while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(sizeof(failure))) {
    ::waitpid(pid, nullptr, 0);
    return ErrnoStatus(failure.err, absl::StrCat(failure.step, " ", spec.argv(0)));
  }
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.ok()) {
    const int error = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return ErrnoStatus(error, "pidfd_open");
  }
  return Started{.process = ChildProcess(pid, std::move(pidfd)),
                 .out = std::move(out->read),
                 .err = std::move(err->read)};
}

}  // namespace magnetar::supervisor
