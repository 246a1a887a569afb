#include "magnetar/failpoint.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <string>

namespace magnetar {
namespace {

// A process that passes `point` twice with `name` set: 0, or 1 if the point failed.
pid_t Pass(const std::string& name) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  SetFailpoints({name});
  const bool ok = Failpoint("point").ok() && Failpoint("point").ok();
  ::_exit(ok ? 0 : 1);
}

int Wait(pid_t pid, int options = 0) {
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, options), pid);
  return status;
}

TEST(FailpointTest, ANameKills) {
  const int status = Wait(Pass("point"));
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
}

TEST(FailpointTest, ErrorFails) {
  const int status = Wait(Pass("point=error"));
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

TEST(FailpointTest, StopWaitsOnceToBeContinued) {
  const pid_t pid = Pass("point=stop");
  int status = Wait(pid, WUNTRACED);
  ASSERT_TRUE(WIFSTOPPED(status));
  ASSERT_EQ(::kill(pid, SIGCONT), 0);
  status = Wait(pid, WUNTRACED);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(FailpointTest, OtherPointsPass) {
  const int status = Wait(Pass("another"));
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace magnetar
