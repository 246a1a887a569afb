#include "src/daemon/sandbox/process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace magnetar::daemon {
namespace {

// A child that sleeps until it is killed.
pid_t Sleeper() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    while (true) ::pause();
  }
  return pid;
}

RecordedProcess Recorded(const char* name, pid_t pid) {
  return {name, IdentifyProcess(pid).value(), false};
}

int SignalThatEnded(pid_t pid) {
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST(KillAndWaitTest, WaitsForAll) {
  const pid_t a = Sleeper();
  const pid_t b = Sleeper();
  const std::vector<RecordedProcess> processes = {Recorded("a", a), Recorded("b", b)};
  EXPECT_TRUE(KillAndWait(processes, std::chrono::seconds(60)).ok());
  EXPECT_EQ(SignalThatEnded(a), SIGKILL);
  EXPECT_EQ(SignalThatEnded(b), SIGKILL);
  EXPECT_TRUE(KillAndWait(processes, std::chrono::seconds(60)).ok());
}

// As one that hangs in the kernel: there is no time to see the first one's end.
TEST(KillAndWaitTest, OneThatDoesNotEndSavesNoOther) {
  std::vector<pid_t> children;
  std::vector<RecordedProcess> processes;
  for (int i = 0; i < 8; ++i) {
    children.push_back(Sleeper());
    processes.push_back(Recorded("child", children.back()));
  }
  (void)KillAndWait(processes, std::chrono::milliseconds(0));
  for (const pid_t child : children) EXPECT_EQ(SignalThatEnded(child), SIGKILL);
}

}  // namespace
}  // namespace magnetar::daemon
