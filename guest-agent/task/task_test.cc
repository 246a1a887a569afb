#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/post.hpp>
#include <chrono>
#include <future>
#include <optional>

#include "guest-agent/testing/task_fixture.h"

namespace magnetar::guest {
namespace {

using Code = absl::StatusCode;

TEST_F(TaskTest, LivesFromCreateToDelete) {
  ASSERT_EQ(Create(), absl::OkStatus());
  EXPECT_THAT(host_.prepared, ::testing::ElementsAre("c"));
  EXPECT_THAT(mounts_.mounted, ::testing::ElementsAre("c"));
  EXPECT_EQ(bundles_.Read("containers/c/config.json"), host_.answer.spec());
  EXPECT_EQ(Create().code(), Code::kAlreadyExists);
  ASSERT_EQ(Start(), absl::OkStatus());
  const auto exit = Wait();
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->exit_status(), 3U);
  const auto state = State();
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->status(), containerd::v1::types::STOPPED);
  EXPECT_EQ(state->exit_status(), 3U);
  EXPECT_EQ(state->bundle(), "/host/b");
  EXPECT_EQ(state->pid(), kPid);
  EXPECT_EQ(Start().code(), Code::kFailedPrecondition);
  EXPECT_EQ(Exec("e").code(), Code::kFailedPrecondition);
  EXPECT_EQ(Kill(9).code(), Code::kNotFound);
  const auto deleted = Delete();
  ASSERT_TRUE(deleted.ok());
  EXPECT_EQ(deleted->exit_status(), 3U);
  EXPECT_EQ(deleted->pid(), kPid);
  EXPECT_EQ(deleted->exited_at().seconds(), exit->exited_at().seconds());
  EXPECT_THAT(mounts_.unmounted, ::testing::ElementsAre("c"));
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
  EXPECT_THAT(mounts_.forgotten, ::testing::ElementsAre("c"));
  EXPECT_EQ(Delete().status().code(), Code::kNotFound);
  EXPECT_EQ(State().status().code(), Code::kNotFound);
  EXPECT_EQ(Wait().status().code(), Code::kNotFound);
}

TEST_F(TaskTest, ListsAContainerFromItsPreparationOn) {
  std::optional<absl::Status> created;
  BeginCreate(&created);
  ASSERT_EQ(tasks_.List().size(), 1U);
  EXPECT_EQ(tasks_.List()[0]->id, "c");
  EXPECT_EQ(State().status().code(), Code::kNotFound);
  host_.answering->Set();
  loop_.Until([&] { return created.has_value(); });
  EXPECT_EQ(*created, absl::OkStatus());
  EXPECT_EQ(tasks_.List().size(), 1U);
  // The fake cgroup kills nobody.
  ::kill(runtime_.last_pid, SIGKILL);
  EXPECT_TRUE(Delete().ok());
  EXPECT_TRUE(tasks_.List().empty());
}

TEST_F(TaskTest, ADeleteDuringCreateUndoesIt) {
  std::optional<absl::Status> created, deleted;
  BeginCreate(&created);
  v3::DeleteRequest request;
  request.set_id("c");
  Begin(tasks_.Delete(request), &deleted);
  loop_.Settle();
  EXPECT_FALSE(deleted.has_value());
  host_.answering->Set();
  loop_.Until([&] { return created.has_value() && deleted.has_value(); });
  EXPECT_EQ(created->code(), Code::kCancelled);
  EXPECT_EQ(deleted->code(), Code::kNotFound);
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
  EXPECT_TRUE(tasks_.List().empty());
  EXPECT_EQ(Create(), absl::OkStatus());
}

TEST_F(TaskTest, ACreateThatNobodyWaitsForAnyMoreIsUndone) {
  const auto response = loop_.Run(tasks_.Create(CreateRequest("c"), TaskManager::Clock::now()));
  EXPECT_EQ(response.status().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
  EXPECT_TRUE(tasks_.List().empty());
}

TEST_F(TaskTest, NeverSendsContainerdToAnOlderService) {
  host_.prepare_status = absl::UnimplementedError("this daemon does not know the request");
  EXPECT_EQ(Create(), absl::FailedPreconditionError(host_.prepare_status.message()));
  v3::CreateTaskRequest request = CreateRequest("c");
  request.set_checkpoint("/c");
  EXPECT_EQ(loop_.Run(tasks_.Create(request)).status().code(), Code::kFailedPrecondition);
}

TEST_F(TaskTest, WhatCannotBeUnmountedIsNotReleased) {
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_TRUE(Wait().ok());
  mounts_.unmount_status = absl::UnavailableError("busy");
  EXPECT_EQ(Delete().status(), mounts_.unmount_status);
  EXPECT_THAT(host_.released, ::testing::IsEmpty());
  EXPECT_EQ(State()->exit_status(), 3U);
  EXPECT_EQ(tasks_.List().size(), 1U);
  mounts_.unmount_status = absl::OkStatus();
  EXPECT_EQ(Delete()->exit_status(), 3U);
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
}

TEST_F(TaskTest, ACreateThatCannotBeUndoneIsLeftToDelete) {
  mounts_.mount_status = absl::DeadlineExceededError("no disk");
  mounts_.unmount_status = absl::UnavailableError("busy");
  EXPECT_EQ(Create(), mounts_.mount_status);
  EXPECT_THAT(host_.released, ::testing::IsEmpty());
  EXPECT_EQ(tasks_.List().size(), 1U);
  EXPECT_EQ(Delete().status(), mounts_.unmount_status);
  mounts_.unmount_status = absl::OkStatus();
  EXPECT_TRUE(Delete().ok());
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
  EXPECT_EQ(Delete().status().code(), Code::kNotFound);
}

TEST_F(TaskTest, ARuntimeThatCannotDeleteCountsOnlyWhileSomethingRuns) {
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_TRUE(Wait().ok());
  runtime_.delete_status = absl::UnknownError("crun delete: no luck");
  cgroup_.Write("pod/c/cgroup.procs", "123\n");
  EXPECT_EQ(Delete().status(), runtime_.delete_status);
  EXPECT_THAT(host_.released, ::testing::IsEmpty());
  cgroup_.Write("pod/c/cgroup.procs", "");
  EXPECT_TRUE(Delete().ok());
}

TEST_F(TaskTest, ClosesWhatEndsAndTellsOfTheRest) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  const pid_t stuck = runtime_.last_pid;
  ASSERT_EQ(Exec("e"), absl::OkStatus());
  host_.answer.set_spec(R"({"linux":{"cgroupsPath":"/pod/d"}})");
  runtime_.commands["d"] = "sleep 100";
  ASSERT_EQ(Create("d"), absl::OkStatus());
  // The fake cgroups kill nobody.
  ::kill(runtime_.last_pid, SIGKILL);
  loop_.Until([this] { return ::kill(runtime_.last_pid, 0) != 0; });
  const auto closed = [this] {
    auto close = [](TaskManager* tasks) -> Co<absl::StatusOr<bool>> {
      auto call = tasks->Close(TaskManager::Clock::now() + std::chrono::seconds(2));
      const absl::Status status = co_await std::move(call);
      if (!status.ok()) co_return status;
      co_return true;
    };
    return loop_.Run(close(&tasks_)).status();
  };
  EXPECT_EQ(closed().code(), Code::kDeadlineExceeded);
  EXPECT_EQ(cgroup_.Read("pod/c/cgroup.kill"), "1");
  EXPECT_THAT(mounts_.unmounted, ::testing::ElementsAre("d"));
  EXPECT_EQ(Create("f").code(), Code::kUnavailable);
  EXPECT_EQ(Exec("g").code(), Code::kUnavailable);
  EXPECT_EQ(Start("e").code(), Code::kUnavailable);
  ::kill(stuck, SIGKILL);
  EXPECT_TRUE(Wait().ok());
  EXPECT_EQ(closed(), absl::OkStatus());
  EXPECT_THAT(mounts_.unmounted, ::testing::UnorderedElementsAre("d", "d", "c"));
}

TEST_F(TaskTest, AnswersBeforeTheSandboxIsSetUp) {
  vmm_pid_ = 0;
  EXPECT_EQ(Create().code(), Code::kFailedPrecondition);
  EXPECT_THAT(host_.prepared, ::testing::IsEmpty());
}

TEST_F(TaskTest, RefusesStrangeIds) {
  for (const char* id : {"", "..", "a/b", "a b", "-a"}) {
    EXPECT_EQ(Create(id).code(), Code::kInvalidArgument) << id;
  }
}

TEST_F(TaskTest, ARefusedPrepareIsPassedOnAndLeavesNothing) {
  host_.prepare_status = absl::NotFoundError("containerd knows no container c");
  EXPECT_EQ(Create(), host_.prepare_status);
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
  host_.prepare_status = absl::OkStatus();
  EXPECT_EQ(Create(), absl::OkStatus());
}

TEST_F(TaskTest, AFailedMountIsUndone) {
  mounts_.mount_status = absl::DeadlineExceededError("no disk");
  EXPECT_EQ(Create().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(mounts_.unmounted, ::testing::ElementsAre("c"));
  EXPECT_THAT(host_.released, ::testing::ElementsAre("c"));
  EXPECT_THAT(mounts_.forgotten, ::testing::ElementsAre("c"));
  EXPECT_THAT(bundles_.Read("containers/c/config.json"), ::testing::StartsWith("<NOT_FOUND"));
}

TEST_F(TaskTest, WhatTheRuntimeSaysIsPassedOn) {
  runtime_.create_status = absl::UnknownError("crun create: executable file not found");
  EXPECT_EQ(Create(), runtime_.create_status);
  EXPECT_THAT(runtime_.calls, ::testing::Contains("delete c"));
  EXPECT_EQ(State().status().code(), Code::kNotFound);
}

TEST_F(TaskTest, RefusesASpecOutsideThePod) {
  for (const char* spec : {"", "[]", "{}", R"({"linux":{"cgroupsPath":"/agent"}})",
                           R"({"linux":{"cgroupsPath":"/pod/../agent"}})"}) {
    host_.answer.set_spec(spec);
    EXPECT_EQ(Create().code(), Code::kInvalidArgument) << spec;
  }
}

TEST_F(TaskTest, HoldsThePodsPidNamespace) {
  host_.answer.set_spec(R"({"linux":{"cgroupsPath":"/pod/c","namespaces":[{"type":"pid",)"
                        R"("path":"/run/magnetar/pod/ns/pid"}]}})");
  ASSERT_EQ(Create(), absl::OkStatus());
  EXPECT_EQ(pid_namespaces_, 1);
}

TEST_F(TaskTest, ADeleteWithoutAStartKills) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  // The fake cgroup kills nobody.
  ::kill(runtime_.last_pid, SIGKILL);
  const auto deleted = Delete();
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->exit_status(), 137U);
  EXPECT_EQ(cgroup_.Read("pod/c/cgroup.kill"), "1");
}

TEST_F(TaskTest, KillsBySignal) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  EXPECT_EQ(Delete().status().code(), Code::kFailedPrecondition);
  EXPECT_EQ(Kill(1000).code(), Code::kInvalidArgument);
  ASSERT_EQ(Kill(SIGTERM), absl::OkStatus());
  EXPECT_EQ(Wait()->exit_status(), 143U);
  EXPECT_TRUE(Delete().ok());
}

TEST_F(TaskTest, ManyWaitersAreTold) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  int told = 0;
  v3::WaitRequest request;
  request.set_id("c");
  for (int i = 0; i < 5; ++i) {
    asio::co_spawn(loop_.context, tasks_.Wait(request), [&](std::exception_ptr, auto response) {
      if (response.ok() && response->exit_status() == 137) ++told;
    });
  }
  loop_.Settle();
  ASSERT_EQ(Kill(SIGKILL), absl::OkStatus());
  EXPECT_TRUE(Wait().ok());
  loop_.Settle();
  EXPECT_EQ(told, 5);
}

TEST_F(TaskTest, PausesWithTheCgroup) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  v3::PauseRequest pause;
  pause.set_id("c");
  v3::ResumeRequest resume;
  resume.set_id("c");
  EXPECT_EQ(loop_.Run(tasks_.Pause(pause)).status().code(), Code::kFailedPrecondition);
  ASSERT_EQ(Start(), absl::OkStatus());
  EXPECT_EQ(loop_.Run(tasks_.Resume(resume)).status().code(), Code::kFailedPrecondition);
  ASSERT_TRUE(loop_.Run(tasks_.Pause(pause)).ok());
  EXPECT_EQ(cgroup_.Read("pod/c/cgroup.freeze"), "1");
  EXPECT_EQ(State()->status(), containerd::v1::types::PAUSED);
  EXPECT_EQ(loop_.Run(tasks_.Pause(pause)).status().code(), Code::kFailedPrecondition);
  EXPECT_EQ(Exec("e").code(), Code::kFailedPrecondition);
  ASSERT_TRUE(loop_.Run(tasks_.Resume(resume)).ok());
  EXPECT_EQ(cgroup_.Read("pod/c/cgroup.freeze"), "0");
  EXPECT_EQ(State()->status(), containerd::v1::types::RUNNING);
}

TEST_F(TaskTest, PausesComeOneAfterTheOther) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_TRUE(WriteExisting(cgroup_ / "pod/c/cgroup.events", "populated 1\nfrozen 0\n").ok());
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  v3::PauseRequest pause;
  pause.set_id("c");
  std::optional<absl::Status> first, second;
  Begin(tasks_.Pause(pause), &first);
  Begin(tasks_.Pause(pause), &second);
  loop_.Until([this] { return cgroup_.Read("pod/c/cgroup.freeze") == "1"; });
  loop_.Settle();
  EXPECT_FALSE(first.has_value());
  ASSERT_TRUE(WriteExisting(cgroup_ / "pod/c/cgroup.events", "populated 1\nfrozen 1\n").ok());
  loop_.Until([&] { return first.has_value() && second.has_value(); });
  EXPECT_EQ(*first, absl::OkStatus());
  EXPECT_EQ(second->code(), Code::kFailedPrecondition);
  EXPECT_EQ(State()->status(), containerd::v1::types::PAUSED);
}

TEST_F(TaskTest, StatsDoNotWaitForMounts) {
  ASSERT_EQ(Create(), absl::OkStatus());
  std::promise<void> disk;
  asio::post(blocking_, [held = disk.get_future().share()] { held.wait(); });
  v3::StatsRequest stats;
  stats.set_id("c");
  EXPECT_TRUE(loop_.Run(tasks_.Stats(stats)).ok());
  disk.set_value();
}

TEST_F(TaskTest, AnswersTheSmallCalls) {
  runtime_.commands["c"] = "sleep 1";
  ASSERT_EQ(Create(), absl::OkStatus());
  v3::PidsRequest pids;
  pids.set_id("c");
  EXPECT_EQ(loop_.Run(tasks_.Pids(pids))->processes(0).pid(), kPid);
  v3::StatsRequest stats;
  stats.set_id("c");
  const auto counted = loop_.Run(tasks_.Stats(stats));
  ASSERT_TRUE(counted.ok());
  EXPECT_EQ(counted->stats().type_url(), "io.containerd.cgroups.v2.Metrics");
  v3::ConnectRequest connect;
  connect.set_id("nobody");
  EXPECT_EQ(loop_.Run(tasks_.Connect(connect))->task_pid(), 0U);
  connect.set_id("c");
  EXPECT_EQ(loop_.Run(tasks_.Connect(connect))->task_pid(), kPid);
  v3::CheckpointTaskRequest checkpoint;
  checkpoint.set_id("c");
  EXPECT_EQ(loop_.Run(tasks_.Checkpoint(checkpoint)).status().code(), Code::kUnimplemented);
  EXPECT_TRUE(loop_.Run(tasks_.Shutdown(v3::ShutdownRequest())).ok());
  v3::UpdateTaskRequest update;
  update.set_id("c");
  EXPECT_TRUE(loop_.Run(tasks_.Update(update)).ok());
  update.mutable_resources()->set_value("nonsense");
  EXPECT_EQ(loop_.Run(tasks_.Update(update)).status().code(), Code::kInvalidArgument);
  update.mutable_resources()->set_value(R"({"cpu":{"cpus":"6-7"},"memory":{"limit":1}})");
  EXPECT_TRUE(loop_.Run(tasks_.Update(update)).ok());
  EXPECT_EQ(runtime_.resources, R"({"cpu":{},"memory":{"limit":1}})");
  EXPECT_THAT(runtime_.calls, ::testing::Contains("update c"));
  v3::ResizePtyRequest resize;
  resize.set_id("c");
  EXPECT_TRUE(loop_.Run(tasks_.ResizePty(resize)).ok());
}

TEST_F(TaskTest, TellsOfMemoryKills) {
  ASSERT_EQ(Create(), absl::OkStatus());
  cgroup_.Write("pod/c/memory.events", "oom 1\noom_kill 1\n");
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_TRUE(Wait().ok());
  const std::string told = Told();
  EXPECT_THAT(told, ::testing::ContainsRegex("OOM c, .*EXITED c 3$"));
  EXPECT_EQ(told.find("OOM"), told.rfind("OOM"));
}

TEST_F(TaskTest, TellsOfEachStep) {
  runtime_.commands["c"] = "sleep 100";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  v3::PauseRequest pause;
  pause.set_id("c");
  ASSERT_TRUE(loop_.Run(tasks_.Pause(pause)).ok());
  v3::ResumeRequest resume;
  resume.set_id("c");
  ASSERT_TRUE(loop_.Run(tasks_.Resume(resume)).ok());
  EXPECT_EQ(Told(), "CREATED c, STARTED c, PAUSED c, RESUMED c");
  ASSERT_EQ(Kill(SIGKILL), absl::OkStatus());
  ASSERT_TRUE(Wait().ok());
  ASSERT_TRUE(Delete().ok());
  EXPECT_EQ(Told(), "EXITED c 137, DELETED c 137");
}

TEST_F(TaskTest, TellsOfExecs) {
  runtime_.commands["c"] = "sleep 100";
  runtime_.exec_command = "exit 3";
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  EXPECT_EQ(Told(), "CREATED c, STARTED c");
  ASSERT_EQ(Exec("e"), absl::OkStatus());
  ASSERT_EQ(Start("e"), absl::OkStatus());
  ASSERT_TRUE(Wait("e").ok());
  EXPECT_EQ(Told(), "EXEC_ADDED c/e, EXEC_STARTED c/e, EXITED c/e 3");
}

TEST_F(TaskTest, TellsOfNothingThatWasNotCreated) {
  runtime_.create_status = absl::InternalError("no");
  EXPECT_FALSE(Create().ok());
  EXPECT_EQ(Told(), "");
}

TEST_F(TaskTest, TellsOfTheEndOfWhatNeverStarted) {
  ASSERT_EQ(Create(), absl::OkStatus());
  ASSERT_EQ(Kill(SIGKILL), absl::OkStatus());
  ASSERT_TRUE(Delete().ok());
  EXPECT_EQ(Told(), "CREATED c, EXITED c 137, DELETED c 137");
}

}  // namespace
}  // namespace magnetar::guest
