// What is exec'ed into a container.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>

#include "guest-agent/testing/task_fixture.h"

namespace magnetar::guest {
namespace {

using Code = absl::StatusCode;

TEST_F(TaskTest, ExecsHaveTheirOwnLives) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  EXPECT_EQ(Exec("e").code(), Code::kFailedPrecondition);
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_EQ(Exec("e"), absl::OkStatus());
  EXPECT_EQ(Exec("e").code(), Code::kAlreadyExists);
  EXPECT_EQ(Exec("../e").code(), Code::kInvalidArgument);
  EXPECT_EQ(State("e")->status(), containerd::v1::types::CREATED);
  EXPECT_EQ(Kill(9, "e").code(), Code::kFailedPrecondition);
  runtime_.exec_command = "exit 9";
  ASSERT_EQ(Start("e"), absl::OkStatus());
  EXPECT_EQ(runtime_.exec_process, R"({"args":["x"]})");
  EXPECT_EQ(Wait("e")->exit_status(), 9U);
  EXPECT_EQ(Start("e").code(), Code::kFailedPrecondition);
  EXPECT_EQ(Delete("e")->exit_status(), 9U);
  EXPECT_EQ(Wait("e").status().code(), Code::kNotFound);
  EXPECT_EQ(State()->status(), containerd::v1::types::RUNNING);
  ASSERT_EQ(Kill(SIGKILL), absl::OkStatus());
  EXPECT_TRUE(Wait().ok());
}

TEST_F(TaskTest, AnExecThatCannotStartCompletesItsWait) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  runtime_.exec_status = absl::UnknownError("crun exec: no such file");
  ASSERT_EQ(Exec("e"), absl::OkStatus());
  EXPECT_EQ(Start("e"), runtime_.exec_status);
  EXPECT_TRUE(Wait("e").ok());
  EXPECT_TRUE(Delete("e").ok());
  ASSERT_EQ(Kill(SIGKILL), absl::OkStatus());
  EXPECT_TRUE(Wait().ok());
}

TEST_F(TaskTest, AnExecRunsWithoutTheHostsLabels) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  const pid_t first = runtime_.last_pid;
  v3::ExecProcessRequest request;
  request.set_id("c");
  request.set_exec_id("e");
  request.mutable_spec()->set_value(R"({"apparmorProfile":"cri","args":["x"]})");
  ASSERT_TRUE(loop_.Run(tasks_.Exec(request, 1)).ok());
  runtime_.exec_command = "exit 0";
  ASSERT_EQ(Start("e"), absl::OkStatus());
  EXPECT_EQ(runtime_.exec_process, R"({"args":["x"]})");
  EXPECT_TRUE(Wait("e").ok());
  ::kill(first, SIGKILL);
  EXPECT_TRUE(Wait().ok());
}

TEST_F(TaskTest, AWaitForWhatNeverRanTellsSo) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_EQ(Exec("e"), absl::OkStatus());
  // As a server calls them, which answers as soon as they return.
  std::optional<absl::StatusOr<v3::WaitResponse>> waited;
  const auto wait = [&]() -> Co<void> {
    v3::WaitRequest request;
    request.set_id("c");
    request.set_exec_id("e");
    auto call = tasks_.Wait(request);
    waited = co_await std::move(call);
  };
  std::optional<absl::StatusOr<v3::DeleteResponse>> deleted;
  bool waited_first = false;
  const auto remove = [&]() -> Co<void> {
    v3::DeleteRequest request;
    request.set_id("c");
    request.set_exec_id("e");
    auto call = tasks_.Delete(request);
    deleted = co_await std::move(call);
    waited_first = waited.has_value();
  };
  asio::co_spawn(loop_.context, wait(), asio::detached);
  loop_.Settle();
  asio::co_spawn(loop_.context, remove(), asio::detached);
  loop_.Until([&] { return waited.has_value() && deleted.has_value(); });
  // containerd takes no answer to a Wait after that to Delete.
  EXPECT_TRUE(waited_first);
  ASSERT_TRUE(waited->ok());
  EXPECT_EQ((*waited)->exit_status(), 255U);
  EXPECT_GT((*waited)->exited_at().seconds(), 0);
  EXPECT_EQ((*deleted)->exit_status(), 255U);
  ASSERT_EQ(Kill(SIGKILL), absl::OkStatus());
  EXPECT_TRUE(Wait().ok());
}

// The container's end is told after its execs' ends: meanwhile its pid is nobody's.
TEST_F(TaskTest, NothingStartsInAContainerThatHasEnded) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  const pid_t first = runtime_.last_pid;
  runtime_.exec_command = "sleep 100";
  ASSERT_EQ(Exec("e"), absl::OkStatus());
  ASSERT_EQ(Start("e"), absl::OkStatus());
  const pid_t second = runtime_.last_pid;
  ::kill(first, SIGKILL);
  loop_.Until([first] { return ::kill(first, 0) != 0; });
  EXPECT_EQ(State()->status(), containerd::v1::types::RUNNING);
  ASSERT_EQ(Exec("late"), absl::OkStatus());
  EXPECT_EQ(Start("late").code(), Code::kFailedPrecondition);
  EXPECT_EQ(Kill(SIGTERM).code(), Code::kNotFound);
  ::kill(second, SIGKILL);
  EXPECT_EQ(Wait()->exit_status(), 137U);
}

TEST_F(TaskTest, ForgetsExecsWhoseCallerIsGone) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  runtime_.exec_command = "exit 0";
  ASSERT_EQ(Exec("never", 5), absl::OkStatus());
  ASSERT_EQ(Exec("done", 5), absl::OkStatus());
  ASSERT_EQ(Start("done"), absl::OkStatus());
  ASSERT_TRUE(Wait("done").ok());
  ASSERT_EQ(Exec("other", 6), absl::OkStatus());
  runtime_.exec_command = "sleep 100";
  ASSERT_EQ(Exec("running", 5), absl::OkStatus());
  ASSERT_EQ(Start("running"), absl::OkStatus());
  const pid_t running = runtime_.last_pid;
  tasks_.ConnectionLost(5);
  EXPECT_EQ(State("never").status().code(), Code::kNotFound);
  EXPECT_EQ(State("done").status().code(), Code::kNotFound);
  EXPECT_TRUE(State("running").ok());
  EXPECT_TRUE(State("other").ok());
  ::kill(running, SIGKILL);
  EXPECT_TRUE(Wait("running").ok());
  loop_.Settle();
  EXPECT_EQ(State("running").status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace magnetar::guest
