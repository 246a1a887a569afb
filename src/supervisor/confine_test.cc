#include "src/supervisor/confine.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>

#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {
namespace {

constexpr uid_t kNobody = 65534;

constexpr int kAborted = 256 + SIGABRT;

// What `act` gives in a confined process, which has a process group of its own; 256 plus the signal
// that killed it.
int Confined(const std::function<int()>& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::setsid();
    const absl::Status confined = Confine({.uid = kNobody, .gid = kNobody});
    ::_exit(confined.ok() ? act() : 255);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

int ErrnoOf(long result) { return result == 0 ? 0 : errno; }

int KillErrno(pid_t pid, int signal) { return ErrnoOf(::kill(pid, signal)); }

int PidfdErrno(int pidfd, int signal) {
  return ErrnoOf(::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0));
}

class ConfineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "gives up root's privileges, which it does not have";
  }
};

TEST_F(ConfineTest, EndsProcessesAndDoesNothingElseToThem) {
  const pid_t other = ::fork();
  if (other == 0) {
    while (true) ::pause();
  }
  EXPECT_EQ(Confined([other] { return KillErrno(other, SIGTERM); }), EPERM);
  EXPECT_EQ(Confined([other] { return KillErrno(other, 0); }), EPERM);
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, other, 0)));
  ASSERT_TRUE(pidfd.ok());
  EXPECT_EQ(Confined([&pidfd] { return PidfdErrno(pidfd.get(), SIGSTOP); }), EPERM);
  EXPECT_EQ(Confined([other] { return ErrnoOf(::syscall(SYS_tgkill, other, other, SIGKILL)); }),
            EPERM);
  // Whole process groups: here its own.
  EXPECT_EQ(Confined([] { return KillErrno(-::getpid(), SIGKILL); }), EPERM);
  EXPECT_EQ(::waitpid(other, nullptr, WNOHANG), 0);
  EXPECT_EQ(Confined([other] { return KillErrno(other, SIGKILL); }), 0);
  EXPECT_EQ(Confined([&pidfd] { return PidfdErrno(pidfd.get(), SIGKILL); }), 0);
  // In case neither was allowed.
  ::kill(other, SIGTERM);
  int status = 0;
  EXPECT_EQ(::waitpid(other, &status, 0), other);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  // An abort is heard.
  EXPECT_EQ(Confined([] { return std::raise(SIGABRT); }), kAborted);
}

}  // namespace
}  // namespace magnetar::supervisor
