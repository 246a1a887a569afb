#include "src/supervisor/confine.h"

#include <asm/ioctls.h>
#include <grp.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <memory>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

#ifdef MAGNETAR_SYSCALL_FILTER
#include <seccomp.h>
#endif

namespace magnetar::supervisor {
namespace {

absl::Status DropPrivileges(uid_t uid, gid_t gid) {
  // The bounding set first: that takes a capability which goes next.
  for (int cap = 0; cap < 64; ++cap) {
    if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0) continue;
    if (errno == EINVAL) break;  // past the last one that this kernel knows
    return ErrnoStatus(errno, "bound the capabilities");
  }
  if (::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0 || ::setgroups(0, nullptr) != 0 ||
      ::setresgid(gid, gid, gid) != 0 || ::setresuid(uid, uid, uid) != 0) {
    return ErrnoStatus(errno, absl::StrCat("become uid ", uid));
  }
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  constexpr uint32_t kKept = 1U << CAP_KILL;
  __user_cap_data_struct data[2] = {{.effective = kKept, .permitted = kKept, .inheritable = 0}, {}};
  if (::syscall(SYS_capset, &header, data) != 0) return ErrnoStatus(errno, "drop capabilities");
  // The VMM has the same uid: it must not be able to look into this process.
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "set no_new_privs");
  }
  return absl::OkStatus();
}

#ifdef MAGNETAR_SYSCALL_FILTER

// Whatever the arguments.
constexpr int kAllowed[] = {
    // Descriptors that are there.
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(accept4),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(getsockname),
    SCMP_SYS(getpeername),
    SCMP_SYS(fcntl),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(lseek),
    SCMP_SYS(fsync),
    SCMP_SYS(close),
    SCMP_SYS(pipe2),
    // Events and time.
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(eventfd2),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    // Its processes.
    SCMP_SYS(wait4),
    SCMP_SYS(waitid),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(restart_syscall),
    // Memory, and what the C library does by itself.
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(futex),
    SCMP_SYS(getrandom),
    SCMP_SYS(sched_yield),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

absl::Status FilterSyscalls(bool vsock) {
  // Refused, not killed: a call that a later kernel's library tries first has its fallback.
  const std::unique_ptr<void, decltype(&seccomp_release)> filter(
      seccomp_init(SCMP_ACT_ERRNO(EPERM)), seccomp_release);
  if (filter == nullptr) return absl::ResourceExhaustedError("seccomp_init");
  const auto allow = [&filter](int call, std::initializer_list<scmp_arg_cmp> arguments) {
    return seccomp_rule_add_array(filter.get(), SCMP_ACT_ALLOW, call,
                                  static_cast<unsigned>(arguments.size()), arguments.begin());
  };
  int error = 0;
  const auto check = [&error](int result) { error = error == 0 ? result : error; };
  for (const int call : kAllowed) check(allow(call, {}));
  // No memory that could hold new code.
  for (const int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) {
    check(allow(call, {SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)}));
  }
  for (const int request : {FIONBIO, FIONREAD}) {
    check(allow(SCMP_SYS(ioctl), {SCMP_A1(SCMP_CMP_EQ, static_cast<scmp_datum_t>(request), 0)}));
  }
  // With CAP_KILL they reach any process of the host. Its processes, and one by one what they left
  // behind, are killed; its own threads hear of an abort.
  constexpr scmp_datum_t kNegative = 0x80000000;
  check(allow(SCMP_SYS(kill),
              {SCMP_A0(SCMP_CMP_MASKED_EQ, kNegative, 0), SCMP_A1(SCMP_CMP_EQ, SIGKILL, 0)}));
  check(allow(SCMP_SYS(pidfd_send_signal), {SCMP_A1(SCMP_CMP_EQ, SIGKILL, 0)}));
  check(allow(SCMP_SYS(tgkill), {SCMP_A0(SCMP_CMP_EQ, static_cast<scmp_datum_t>(::getpid()), 0)}));
  // Not SOCK_DGRAM: an end of such a pair can be connected to any other socket.
  constexpr scmp_datum_t kTypeMask = 0xf;
  check(allow(SCMP_SYS(socketpair), {SCMP_A0(SCMP_CMP_EQ, AF_UNIX, 0),
                                     SCMP_A1(SCMP_CMP_MASKED_EQ, kTypeMask, SOCK_STREAM)}));
  if (vsock) {
    check(allow(SCMP_SYS(socket), {SCMP_A0(SCMP_CMP_EQ, AF_VSOCK, 0)}));
    check(allow(SCMP_SYS(connect), {}));
  }
  if (error == 0) error = seccomp_load(filter.get());
  if (error != 0) return ErrnoStatus(-error, "filter system calls");
  return absl::OkStatus();
}

#else

// The sanitizers' libraries have needs of their own.
absl::Status FilterSyscalls(bool) { return absl::OkStatus(); }

#endif

}  // namespace

absl::Status Confine(const Confinement& confinement) {
  MAGNETAR_RETURN_IF_ERROR(DropPrivileges(confinement.uid, confinement.gid));
  return FilterSyscalls(confinement.vsock);
}

}  // namespace magnetar::supervisor
