#include "src/supervisor/confine.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>

namespace magnetar::supervisor {
namespace {

constexpr uid_t kNobody = 65534;

// What `act` gives in a confined process, which has a process group of its own. 256: it was killed.
int Confined(const std::function<int()>& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::setsid();
    const absl::Status confined = Confine({.uid = kNobody, .gid = kNobody});
    ::_exit(confined.ok() ? act() : 255);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
}

int KillErrno(pid_t pid, int signal) { return ::kill(pid, signal) == 0 ? 0 : errno; }

class ConfineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "gives up root's privileges, which it does not have";
    const bool filters = Confined([] { return ::getppid() > 0 ? 0 : 1; }) != 0;
    if (!filters) GTEST_SKIP() << "built without the filter, as with sanitizers";
  }
};

TEST_F(ConfineTest, EndsProcessesAndDoesNothingElseToThem) {
  const pid_t other = ::fork();
  if (other == 0) {
    while (true) ::pause();
  }
  EXPECT_EQ(Confined([other] { return KillErrno(other, SIGTERM); }), EPERM);
  EXPECT_EQ(Confined([other] { return KillErrno(other, 0); }), EPERM);
  // Whole process groups: here its own.
  EXPECT_EQ(Confined([] { return KillErrno(-::getpid(), SIGKILL); }), EPERM);
  EXPECT_EQ(::waitpid(other, nullptr, WNOHANG), 0);
  EXPECT_EQ(Confined([other] { return KillErrno(other, SIGKILL); }), 0);
  int status = 0;
  EXPECT_EQ(::waitpid(other, &status, 0), other);
  EXPECT_TRUE(WIFSIGNALED(status));
  // An abort is heard.
  EXPECT_EQ(Confined([] { return std::raise(SIGABRT); }), 256);
}

}  // namespace
}  // namespace magnetar::supervisor
