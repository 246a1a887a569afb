#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstring>
#include <future>
#include <optional>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/task_connection.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/testing/fakes.h"
#include "guest-agent/testing/loop.h"
#include "guest-agent/testing/temp_dir.h"
#include "magnetar/descriptor_message.h"

namespace magnetar::guest {
namespace {

namespace v3 = containerd::task::v3;
using testing::Loop;
using testing::OpenStdio;
using testing::ReadOutput;
using Code = absl::StatusCode;

constexpr uint32_t kPid = 777;

std::string Uri(const std::string& id) {
  return absl::StrCat("ttrpc+hvsock:///s?streaming_id=", id);
}

class TaskTest : public ::testing::Test {
 protected:
  TaskTest()
      : reaper_(loop_.executor()),
        streams_(loop_.executor()),
        events_(loop_.executor()),
        tasks_(loop_.executor(), Environment()),
        connections_(loop_.executor(), tasks_, streams_) {
    reaper_.Start();
    EXPECT_TRUE(events_.Start().ok());
    cgroup_.Write("pod/c/memory.events", "oom_kill 0\n");
    cgroup_.Write("pod/c/cgroup.kill", "");
    cgroup_.Write("pod/c/cgroup.freeze", "");
    cgroup_.Write("pod/c/cgroup.events", "populated 1\nfrozen 1\n");
    cgroup_.Write("pod/c/memory.stat", "anon 1234\n");
    host_.answer.set_spec(R"({"linux":{"cgroupsPath":"/pod/c","namespaces":[{"type":"pid"}]}})");
    runtime_.commands["c"] = "exit 3";
  }
  ~TaskTest() override {
    reaper_.Stop();
    events_.Stop();
    blocking_.join();
    counters_.join();
  }

  TaskEnvironment Environment() {
    TaskEnvironment out;
    out.runtime = &runtime_;
    out.reaper = &reaper_;
    out.streams = &streams_;
    out.host = &host_;
    out.mounts = &mounts_;
    out.cgroup_events = &events_;
    out.blocking = &blocking_;
    out.counters = &counters_;
    out.vmm_pid = [this] { return vmm_pid_; };
    out.hold_pid_namespace = [this] {
      ++pid_namespaces_;
      return absl::OkStatus();
    };
    out.containers = bundles_ / "containers";
    out.consoles = bundles_.path();
    out.cgroup_root = cgroup_.path();
    return out;
  }

  static v3::CreateTaskRequest CreateRequest(const std::string& id, bool output = false) {
    v3::CreateTaskRequest request;
    request.set_id(id);
    request.set_bundle("/host/b");
    if (output) {
      request.set_stdout(Uri(id + "-stdout"));
      request.set_stdin(Uri(id + "-stdin"));
    }
    request.add_rootfs()->set_type("overlay");
    return request;
  }
  absl::Status Create(const std::string& id = "c", bool output = false) {
    const auto response = loop_.Run(tasks_.Create(CreateRequest(id, output)));
    if (response.ok()) {
      EXPECT_EQ(response->pid(), kPid);
    }
    return response.status();
  }
  absl::Status Start(const std::string& exec = "") {
    v3::StartRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.Start(request)).status();
  }
  // Begins a call whose outcome lands in `status`.
  template <typename Response>
  void Begin(Co<absl::StatusOr<Response>> call, std::optional<absl::Status>* status) {
    status->reset();
    asio::co_spawn(loop_.context, std::move(call),
                   [status](std::exception_ptr, absl::StatusOr<Response> response) {
                     *status = response.status();
                   });
  }
  // Begins a Create that hangs in the daemon until `host_.answering` is set.
  void BeginCreate(std::optional<absl::Status>* status) {
    host_.answering = std::make_shared<Event>(loop_.executor());
    Begin(tasks_.Create(CreateRequest("c")), status);
    loop_.Until([this] { return !host_.prepared.empty(); });
  }
  absl::Status Exec(const std::string& exec, uint64_t connection = 1) {
    v3::ExecProcessRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    request.mutable_spec()->set_value(R"({"apparmorProfile":"host's","args":["x"]})");
    return loop_.Run(tasks_.Exec(request, connection)).status();
  }
  absl::StatusOr<v3::WaitResponse> Wait(const std::string& exec = "") {
    v3::WaitRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.Wait(request));
  }
  absl::StatusOr<v3::DeleteResponse> Delete(const std::string& exec = "") {
    v3::DeleteRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.Delete(request));
  }
  absl::StatusOr<v3::StateResponse> State(const std::string& exec = "") {
    v3::StateRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.State(request));
  }
  absl::Status Kill(uint32_t signal, const std::string& exec = "") {
    v3::KillRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    request.set_signal(signal);
    return loop_.Run(tasks_.Kill(request)).status();
  }

  Loop loop_;
  testing::TempDir bundles_, cgroup_;
  testing::FakeRuntime runtime_;
  testing::FakeHost host_;
  testing::FakeMounts mounts_;
  asio::thread_pool blocking_{1};
  asio::thread_pool counters_{1};
  uint32_t vmm_pid_ = kPid;
  int pid_namespaces_ = 0;
  Reaper reaper_;
  StreamRegistry streams_;
  CgroupEvents events_;
  TaskManager tasks_;
  TaskConnections connections_;
};

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
  std::optional<absl::StatusOr<v3::WaitResponse>> waited;
  v3::WaitRequest wait;
  wait.set_id("c");
  wait.set_exec_id("e");
  asio::co_spawn(loop_.context, tasks_.Wait(wait),
                 [&](std::exception_ptr, auto response) { waited = std::move(response); });
  loop_.Settle();
  const auto deleted = Delete("e");
  loop_.Until([&] { return waited.has_value(); });
  ASSERT_TRUE(waited->ok());
  EXPECT_EQ((*waited)->exit_status(), 255U);
  EXPECT_GT((*waited)->exited_at().seconds(), 0);
  EXPECT_EQ(deleted->exit_status(), 255U);
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
  EXPECT_EQ(loop_.Run(tasks_.ResizePty(resize)).status().code(), Code::kFailedPrecondition);
}

TEST_F(TaskTest, TellsOfMemoryKills) {
  ASSERT_EQ(Create(), absl::OkStatus());
  cgroup_.Write("pod/c/memory.events", "oom 1\noom_kill 1\n");
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_TRUE(Wait().ok());
  ASSERT_EQ(host_.events.size(), 1U);
  EXPECT_EQ(host_.events[0].container_id(), "c");
}

// The whole way: the stream is opened first, over a connection of its own.
TEST_F(TaskTest, StdioOverConnections) {
  runtime_.commands["c"] = "read x; echo got $x; exit 4";
  auto connect = [this] {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    connections_.Serve(UniqueFd(pair[1]));
    return ttrpc::Client::Create(loop_.executor(), UniqueFd(pair[0]));
  };
  const auto out_client = connect();
  const auto in_client = connect();
  const auto out = loop_.Run(OpenStdio(out_client, "c-stdout"));
  const auto in = loop_.Run(OpenStdio(in_client, "c-stdin"));
  ASSERT_TRUE(out.ok() && in.ok());
  ASSERT_EQ(Create("c", /*output=*/true), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  ASSERT_TRUE(loop_.Run((*in)->Receive()).ok());
  ASSERT_TRUE(loop_.Run((*in)->Send(streaming::DataFrame("word\n"))).ok());
  const auto frames = loop_.Run(ReadOutput(*out, 65536));
  EXPECT_EQ(frames.data, "got word\n");
  EXPECT_TRUE(frames.ended);
  EXPECT_EQ(Wait()->exit_status(), 4U);
  // Both halves of a stream ended: the guest closes its connection.
  loop_.Run(out_client->Closed());
  EXPECT_TRUE(Delete().ok());
  EXPECT_EQ(streams_.size(), 0U);
}

// containerd drops what it has not read when it hears of the end.
TEST_F(TaskTest, AnEndIsToldOnceItsOutputIsRead) {
  runtime_.commands["c"] = "echo last words; exit 4";
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  connections_.Serve(UniqueFd(pair[1]));
  const auto client = ttrpc::Client::Create(loop_.executor(), UniqueFd(pair[0]));
  const auto out = loop_.Run(OpenStdio(client, "c-stdout"));
  ASSERT_TRUE(out.ok());
  ASSERT_EQ(Create("c", /*output=*/true), absl::OkStatus());
  ASSERT_EQ(Start(), absl::OkStatus());
  v3::WaitRequest request;
  request.set_id("c");
  std::optional<uint32_t> told;
  asio::co_spawn(loop_.context, tasks_.Wait(request),
                 [&](const std::exception_ptr&, absl::StatusOr<v3::WaitResponse> response) {
                   told = response->exit_status();
                 });
  loop_.Settle(std::chrono::milliseconds(300));
  EXPECT_FALSE(told.has_value());
  EXPECT_EQ(loop_.Run(ReadOutput(*out, 65536)).data, "last words\n");
  loop_.Until([&] { return told.has_value(); });
  EXPECT_EQ(*told, 4U);
}

TEST(ProcessIo, ASizeThatComesBeforeTheTerminalIsNotLost) {
  Loop loop;
  StreamRegistry streams(loop.executor());
  const testing::TempDir dir;
  ProcessIo::Uris uris;
  uris.terminal = true;
  auto io = ProcessIo::Open(loop.executor(), streams, uris);
  ASSERT_TRUE(io.ok());
  EXPECT_EQ((*io)->Resize(80, 24), absl::OkStatus());
  EXPECT_EQ((*io)->Resize(123, 45), absl::OkStatus());
  ASSERT_TRUE((*io)->Prepare(dir / "console").ok());
  const UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(master.ok());
  const UniqueFd runtime(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (dir / "console").c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(::connect(runtime.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
            0);
  ASSERT_GT(SendWithDescriptor(runtime.get(), "/dev/ptmx", master.get()), 0);
  ASSERT_EQ((*io)->Connect(), absl::OkStatus());
  winsize size = {};
  ASSERT_EQ(::ioctl(master.get(), TIOCGWINSZ, &size), 0);
  EXPECT_EQ(size.ws_col, 123);
  EXPECT_EQ(size.ws_row, 45);
}

}  // namespace
}  // namespace magnetar::guest
