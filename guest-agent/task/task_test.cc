#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/thread_pool.hpp>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/task_connection.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/testing/fakes.h"
#include "guest-agent/testing/loop.h"
#include "guest-agent/testing/temp_dir.h"

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
    // The fake has no Start to wait for.
    runtime_.commands["c"] = "sleep 0.05; exit 3";
  }
  ~TaskTest() override {
    reaper_.Stop();
    events_.Stop();
    blocking_.join();
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

  absl::Status Create(const std::string& id = "c", bool output = false) {
    v3::CreateTaskRequest request;
    request.set_id(id);
    request.set_bundle("/host/b");
    if (output) {
      request.set_stdout(Uri(id + "-stdout"));
      request.set_stdin(Uri(id + "-stdin"));
    }
    request.add_rootfs()->set_type("overlay");
    const auto response = loop_.Run(tasks_.Create(request));
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
  ASSERT_TRUE(loop_.Run((*in)->Send(DataFrame("word\n"))).ok());
  const auto frames = loop_.Run(ReadOutput(*out, 65536));
  EXPECT_EQ(frames.data, "got word\n");
  EXPECT_TRUE(frames.ended);
  EXPECT_EQ(Wait()->exit_status(), 4U);
  // Both halves of a stream ended: the guest closes its connection.
  ASSERT_TRUE(loop_.Run((*out)->CloseSend()).ok());
  loop_.Run(out_client->Closed());
  EXPECT_TRUE(Delete().ok());
  EXPECT_EQ(streams_.size(), 0U);
}

}  // namespace
}  // namespace magnetar::guest
