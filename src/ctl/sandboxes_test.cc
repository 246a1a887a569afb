#include "src/ctl/sandboxes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/ctl/testing.h"

namespace magnetar::ctl {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

using SandboxesTest = RunDirectoryTest;

TEST_F(SandboxesTest, ALivingSandbox) {
  Write(LivingRecord("abc1"));
  auto list = ListSandboxes(run_dir_);
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_THAT(list->sandboxes, SizeIs(1));
  const SandboxView& sandbox = list->sandboxes[0];
  EXPECT_EQ(sandbox.state, "ready");
  EXPECT_EQ(sandbox.pod.metadata().name(), "web");
  ASSERT_THAT(sandbox.processes, SizeIs(1));
  EXPECT_TRUE(sandbox.processes[0].alive);
  EXPECT_GT(sandbox.pss(), 0u);
  EXPECT_FALSE(sandbox.exited);
}

TEST_F(SandboxesTest, AVmThatEndedWhileTheDaemonWasAway) {
  daemon::Record record = LivingRecord("abc1");
  record.processes[0].identity.start_time_ticks += 1;  // somebody else has the pid now
  Write(record);
  Put("abc1/exit.json", R"({"status":137,"exited_at_ns":1700000001000000000,"reason":"killed"})");
  auto sandbox = FindSandbox(run_dir_, "abc1");
  ASSERT_TRUE(sandbox.ok()) << sandbox.status();
  EXPECT_EQ(sandbox->state, "notready");
  EXPECT_FALSE(sandbox->processes[0].alive);
  EXPECT_EQ(sandbox->pss(), 0u);
  EXPECT_TRUE(sandbox->exited);
  EXPECT_EQ(sandbox->exit_status, 137u);
  EXPECT_EQ(sandbox->exit_reason, "killed");
}

TEST_F(SandboxesTest, TheRecordsExitWins) {
  daemon::Record record = LivingRecord("abc1");
  record.state = "notready";
  record.exited_at_ns = 5;
  record.exit_status = 1;
  Write(record);
  Put("abc1/exit.json", R"({"status":137,"exited_at_ns":7})");
  EXPECT_EQ(FindSandbox(run_dir_, "abc1")->exit_status, 1u);
}

TEST_F(SandboxesTest, BrokenRecordsAreToldAndTheRestShown) {
  Write(LivingRecord("good"));
  Put("bad/sandbox.json", "{");
  Put("empty/other", "");
  Put("odd/sandbox.json", R"({"schema":99,"id":"odd"})");
  auto list = ListSandboxes(run_dir_);
  ASSERT_TRUE(list.ok());
  EXPECT_THAT(list->sandboxes, SizeIs(1));
  EXPECT_THAT(list->problems, SizeIs(2));
}

TEST_F(SandboxesTest, BrokenExitFilesAreNoExitOrAnEmptyOne) {
  Write(LivingRecord("abc1"));
  for (const char* text : {"", "{", "[1]"}) {
    Put("abc1/exit.json", text);
    EXPECT_FALSE(FindSandbox(run_dir_, "abc1")->exited) << text;
  }
  Put("abc1/exit.json", R"({"status":"x","reason":7})");
  EXPECT_TRUE(FindSandbox(run_dir_, "abc1")->exited);
}

TEST_F(SandboxesTest, FindsByPrefix) {
  Write(LivingRecord("abc1"));
  Write(LivingRecord("abc12"));
  Write(LivingRecord("xyz"));
  EXPECT_EQ(FindSandbox(run_dir_, "x")->record.id, "xyz");
  EXPECT_EQ(FindSandbox(run_dir_, "abc1")->record.id, "abc1");
  EXPECT_TRUE(absl::IsInvalidArgument(FindSandbox(run_dir_, "abc").status()));
  EXPECT_TRUE(absl::IsNotFound(FindSandbox(run_dir_, "q").status()));
  EXPECT_TRUE(absl::IsNotFound(FindSandbox(run_dir_, "").status()));
  EXPECT_TRUE(absl::IsNotFound(FindSandbox(run_dir_, "../etc").status()));
}

TEST_F(SandboxesTest, NoRunDirectory) {
  EXPECT_TRUE(absl::IsNotFound(ListSandboxes(run_dir_ + "/none").status()));
  EXPECT_THAT(ListSandboxes(run_dir_)->sandboxes, IsEmpty());
}

}  // namespace
}  // namespace magnetar::ctl
