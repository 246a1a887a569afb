// Tasks and their stdio, in a real VM.
#include <boost/asio/post.hpp>
#include <chrono>
#include <thread>

#include "cgroups/v2_metrics.pb.h"
#include "guest-agent/testing/guest_vm_fixture.h"

namespace magnetar::guest::testing {
namespace {

TEST_F(GuestVmTest, RunsAContainerToItsEnd) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("c1", {"sh", "-c",
                 "echo out; echo err >&2; hostname; ip -o addr; ulimit -Sn; ulimit -Hn; exit 42"});
  TestStream out(*vm_, "c1-stdout");
  TestStream err(*vm_, "c1-stderr");
  ASSERT_TRUE(Create(task, "c1", false, false).ok());
  EXPECT_EQ(Create(task, "c1", false, false).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(Start(task, "c1").ok());
  const std::string text = out.ReadAll();
  EXPECT_THAT(text, ::testing::StartsWith("out\nguesthost\n"));
  EXPECT_THAT(text, ::testing::HasSubstr("net7    inet 10.0.2.15/24"));
  EXPECT_THAT(text, ::testing::HasSubstr("net7    inet6 fd00::2/64"));
  EXPECT_THAT(text, ::testing::HasSubstr("1048576\n1048576\n"));
  EXPECT_EQ(err.ReadAll(), "err\n");
  const auto exit = Wait(task, "c1");
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->exit_status(), 42U);
  EXPECT_GT(exit->exited_at().seconds(), 1700000000);
  const auto deleted = Delete(task, "c1");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->exit_status(), 42U);
  EXPECT_EQ(deleted->pid(), kVmmPid);
  EXPECT_THAT(vm_->released, ::testing::Contains("c1"));
  EXPECT_EQ(Delete(task, "c1").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GuestVmTest, CarriesStdinToItsEndAndBackWithoutLoss) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("cat", {"cat"});
  TestStream in(*vm_, "cat-stdin");
  TestStream out(*vm_, "cat-stdout");
  ASSERT_EQ(Create(task, "cat", true, false), absl::OkStatus());
  ASSERT_EQ(Start(task, "cat"), absl::OkStatus());
  std::string data;
  for (int i = 0; data.size() < 3000000; ++i) absl::StrAppend(&data, "line ", i, "\n");
  std::thread writer([&] { EXPECT_EQ(in.WriteAll(data, /*end=*/true), absl::OkStatus()); });
  v3::CloseIORequest close;
  close.set_id("cat");
  close.set_stdin(true);
  EXPECT_TRUE(vm_->Task<wire::Empty>(task, "CloseIO", close).ok());
  EXPECT_TRUE(out.ReadAll() == data);
  writer.join();
  const auto exit = Wait(task, "cat");
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->exit_status(), 0U);
  EXPECT_TRUE(Delete(task, "cat").ok());
}

TEST_F(GuestVmTest, AStalledSiblingStopsNobody) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("stall", {"sh", "-c", "yes stalled"});
  TestStream stalled(*vm_, "stall-stdout");
  ASSERT_EQ(Create(task, "stall", false, false), absl::OkStatus());
  ASSERT_EQ(Start(task, "stall"), absl::OkStatus());
  Prepare("seq", {"seq", "1", "200000"});
  std::string expected;
  for (int i = 1; i <= 200000; ++i) absl::StrAppend(&expected, i, "\n");
  const Client other = vm_->Dial(kTaskPort);
  TestStream out(*vm_, "seq-stdout");
  ASSERT_EQ(Create(other, "seq", false, false), absl::OkStatus());
  ASSERT_EQ(Start(other, "seq"), absl::OkStatus());
  const std::string text = out.ReadAll();
  EXPECT_TRUE(text == expected);
  EXPECT_TRUE(Wait(other, "seq").ok());
  EXPECT_TRUE(Delete(other, "seq").ok());
  KillAndDelete(task, "stall");
}

TEST_F(GuestVmTest, CarriesMuch) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("much", {"dd", "if=/dev/zero", "bs=65536", "count=1600"});
  TestStream out(*vm_, "much-stdout");
  ASSERT_EQ(Create(task, "much", false, false), absl::OkStatus());
  const auto before = std::chrono::steady_clock::now();
  ASSERT_EQ(Start(task, "much"), absl::OkStatus());
  const std::string text = out.ReadAll();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - before;
  EXPECT_EQ(text.size(), 1600U * 65536);
  std::cerr << static_cast<double>(text.size()) / took.count() / (1 << 20) << " MiB/s of output"
            << std::endl;
  EXPECT_TRUE(Wait(task, "much").ok());
  EXPECT_TRUE(Delete(task, "much").ok());
}

TEST_F(GuestVmTest, ExecsAndTellsTheirEnds) {
  const Client task = Sleeper("ex");
  EXPECT_EQ(ExecOutput(task, "ex", "e1", {"sh", "-c", "echo hi; echo no >&2"}), "hi\nno\n");
  TestStream out(*vm_, "e2-stdout");
  ASSERT_EQ(Exec(task, "ex", "e2", {"sh", "-c", "exit 7"}), absl::OkStatus());
  EXPECT_EQ(Exec(task, "ex", "e2", {"true"}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(State(task, "ex", "e2")->status(), containerd::v1::types::CREATED);
  ASSERT_EQ(Start(task, "ex", "e2"), absl::OkStatus());
  EXPECT_EQ(out.ReadAll(), "");
  EXPECT_EQ(Wait(task, "ex", "e2")->exit_status(), 7U);
  const auto state = State(task, "ex", "e2");
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->status(), containerd::v1::types::STOPPED);
  EXPECT_EQ(state->exit_status(), 7U);
  EXPECT_EQ(state->stdout(), StreamUri("e2-stdout"));
  EXPECT_EQ(Kill(task, "ex", 9, "e2").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Delete(task, "ex", "e2").ok());
  EXPECT_EQ(State(task, "ex", "e2").status().code(), absl::StatusCode::kNotFound);
  // What crun refuses is said, and completes a Wait.
  ASSERT_EQ(Exec(task, "ex", "e3", {"/no/such"}), absl::OkStatus());
  const absl::Status refused = Start(task, "ex", "e3");
  EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr("/no/such"));
  EXPECT_TRUE(Wait(task, "ex", "e3").ok());
  EXPECT_TRUE(Delete(task, "ex", "e3").ok());
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 10; ++i) ExecOutput(task, "ex", absl::StrCat("t", i), {"true"});
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
  std::cerr << "exec of true takes " << took.count() / 10 << " ms" << std::endl;
  KillAndDelete(task, "ex");
}

TEST_F(GuestVmTest, GivesTerminals) {
  const Client task = Sleeper("tty");
  TestStream in(*vm_, "sh-stdin");
  TestStream out(*vm_, "sh-stdout");
  ASSERT_EQ(Exec(task, "tty", "sh", {"sh"}, /*in=*/true, /*terminal=*/true), absl::OkStatus());
  ASSERT_EQ(Start(task, "tty", "sh"), absl::OkStatus());
  v3::ResizePtyRequest resize;
  resize.set_id("tty");
  resize.set_exec_id("sh");
  resize.set_width(123);
  resize.set_height(45);
  ASSERT_TRUE(vm_->Task<wire::Empty>(task, "ResizePty", resize).ok());
  ASSERT_EQ(in.WriteAll("stty size; exit 5\n", false), absl::OkStatus());
  EXPECT_THAT(out.ReadAll(), ::testing::HasSubstr("45 123"));
  EXPECT_EQ(Wait(task, "tty", "sh")->exit_status(), 5U);
  EXPECT_TRUE(Delete(task, "tty", "sh").ok());
  KillAndDelete(task, "tty");
}

TEST_F(GuestVmTest, GivesAContainerATerminal) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("ctty", {"sh", "-c", "read x; echo got:$x; stty size"}, /*terminal=*/true);
  TestStream in(*vm_, "ctty-stdin");
  TestStream out(*vm_, "ctty-stdout");
  ASSERT_EQ(Create(task, "ctty", true, true), absl::OkStatus());
  ASSERT_EQ(Start(task, "ctty"), absl::OkStatus());
  ASSERT_EQ(in.WriteAll("word\n", false), absl::OkStatus());
  EXPECT_THAT(out.ReadAll(), ::testing::HasSubstr("got:word"));
  EXPECT_EQ(Wait(task, "ctty")->exit_status(), 0U);
  EXPECT_TRUE(Delete(task, "ctty").ok());
}

TEST_F(GuestVmTest, PausesResumesAndCounts) {
  const Client task = Sleeper("pause");
  v3::PauseRequest pause;
  pause.set_id("pause");
  v3::ResumeRequest resume;
  resume.set_id("pause");
  ASSERT_TRUE(vm_->Task<wire::Empty>(task, "Pause", pause).ok());
  EXPECT_EQ(State(task, "pause")->status(), containerd::v1::types::PAUSED);
  EXPECT_EQ(Exec(task, "pause", "e", {"true"}).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(vm_->Task<wire::Empty>(task, "Resume", resume).ok());
  EXPECT_EQ(State(task, "pause")->status(), containerd::v1::types::RUNNING);
  EXPECT_EQ(Delete(task, "pause").status().code(), absl::StatusCode::kFailedPrecondition);
  v3::StatsRequest stats;
  stats.set_id("pause");
  auto answer = vm_->Task<v3::StatsResponse>(task, "Stats", stats);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->stats().type_url(), "io.containerd.cgroups.v2.Metrics");
  io::containerd::cgroups::v2::Metrics metrics;
  ASSERT_TRUE(metrics.ParseFromString(answer->stats().value()));
  EXPECT_EQ(metrics.memory().usage_limit(), 67108864U);
  EXPECT_GT(metrics.memory().usage(), 0U);
  EXPECT_EQ(metrics.pids().limit(), 100U);
  EXPECT_GT(metrics.cpu().usage_usec(), 0U);
  v3::UpdateTaskRequest update;
  update.set_id("pause");
  update.mutable_resources()->set_value(
      R"({"memory":{"limit":50331648},"cpu":{"shares":512,"quota":50000,"period":100000}})");
  const auto updated = vm_->Task<wire::Empty>(task, "Update", update);
  EXPECT_TRUE(updated.ok()) << updated.status();
  answer = vm_->Task<v3::StatsResponse>(task, "Stats", stats);
  ASSERT_TRUE(answer.ok());
  ASSERT_TRUE(metrics.ParseFromString(answer->stats().value()));
  EXPECT_EQ(metrics.memory().usage_limit(), 50331648U);
  v3::PidsRequest pids;
  pids.set_id("pause");
  EXPECT_EQ(vm_->Task<v3::PidsResponse>(task, "Pids", pids)->processes(0).pid(), kVmmPid);
  EXPECT_EQ(Kill(task, "pause", 9), absl::OkStatus());
  EXPECT_EQ(Wait(task, "pause")->exit_status(), 137U);
  EXPECT_EQ(vm_->Task<v3::PidsResponse>(task, "Pids", pids)->processes_size(), 1);
  // Its counters stay until it is deleted.
  const uint64_t used = metrics.cpu().usage_usec();
  answer = vm_->Task<v3::StatsResponse>(task, "Stats", stats);
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_TRUE(metrics.ParseFromString(answer->stats().value()));
  EXPECT_GE(metrics.cpu().usage_usec(), used);
  EXPECT_EQ(metrics.pids().current(), 0U);
  EXPECT_TRUE(Delete(task, "pause").ok());
  EXPECT_EQ(vm_->Task<v3::StatsResponse>(task, "Stats", stats).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(GuestVmTest, TellsThatAContainerRanOutOfMemory) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("oom", {"busybox", "awk", "BEGIN { x = \"a\"; while (1) x = x x }"});
  ASSERT_EQ(Create(task, "oom", false, false), absl::OkStatus());
  ASSERT_EQ(Start(task, "oom"), absl::OkStatus());
  const auto exit = Wait(task, "oom");
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->exit_status(), 137U);
  v3::StatsRequest stats;
  stats.set_id("oom");
  const auto answer = vm_->Task<v3::StatsResponse>(task, "Stats", stats);
  ASSERT_TRUE(answer.ok());
  io::containerd::cgroups::v2::Metrics metrics;
  ASSERT_TRUE(metrics.ParseFromString(answer->stats().value()));
  EXPECT_GT(metrics.memory_events().oom_kill(), 0U);
  EXPECT_TRUE(Delete(task, "oom").ok());
  ASSERT_FALSE(vm_->events.empty());
  EXPECT_EQ(vm_->events.back().container_id(), "oom");
}

TEST_F(GuestVmTest, AFailedCreateLeavesNothing) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("bad", {"/no/such/program"});
  const absl::Status status = Create(task, "bad", false, false);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("/no/such/program"));
  EXPECT_THAT(vm_->released, ::testing::Contains("bad"));
  EXPECT_EQ(State(task, "bad").status().code(), absl::StatusCode::kNotFound);
  // The same id works once it is right.
  Prepare("bad", {"true"});
  EXPECT_EQ(Create(task, "bad", false, false), absl::OkStatus());
  EXPECT_EQ(Delete(task, "bad").status(), absl::OkStatus());
  EXPECT_EQ(Create(task, "unknown", false, false).code(), absl::StatusCode::kNotFound);
}

TEST_F(GuestVmTest, OutputSurvivesTheReader) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("reattach", {"sh", "-c", "echo one; read x; echo two; seq 1 5; exit 3"});
  auto in = std::make_unique<TestStream>(*vm_, "reattach-stdin");
  auto out = std::make_unique<TestStream>(*vm_, "reattach-stdout");
  ASSERT_EQ(Create(task, "reattach", true, false), absl::OkStatus());
  ASSERT_EQ(Start(task, "reattach"), absl::OkStatus());
  EXPECT_EQ(out->ReadSome(4), "one\n");
  out->Drop();
  in->Drop();
  TestStream in2(*vm_, "reattach-stdin");
  ASSERT_EQ(in2.WriteAll("go\n", false), absl::OkStatus());
  EXPECT_EQ(Wait(task, "reattach")->exit_status(), 3U);
  TestStream out2(*vm_, "reattach-stdout");
  EXPECT_EQ(out2.ReadAll(), "two\n1\n2\n3\n4\n5\n");
  EXPECT_TRUE(Delete(task, "reattach").ok());
}

TEST_F(GuestVmTest, RefusesStrangeStdio) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("strange", {"true"});
  v3::CreateTaskRequest request;
  request.set_id("strange");
  for (const char* uri : {"?streaming_id=strange-stdout", "/run/fifo/1", "file:///tmp/x",
                          "ttrpc+hvsock:///x?streaming_id=../a-stdout",
                          "ttrpc+hvsock:///x?streaming_id=strange-stdin"}) {
    request.set_stdout(uri);
    const auto response = vm_->Task<v3::CreateTaskResponse>(task, "Create", request);
    EXPECT_EQ(response.status().code(), absl::StatusCode::kInvalidArgument) << uri;
  }
  // None at all is fine.
  request.clear_stdout();
  EXPECT_TRUE(vm_->Task<v3::CreateTaskResponse>(task, "Create", request).ok());
  EXPECT_EQ(Start(task, "strange"), absl::OkStatus());
  EXPECT_EQ(Wait(task, "strange")->exit_status(), 0U);
  EXPECT_TRUE(Delete(task, "strange").ok());
}

TEST_F(GuestVmTest, ForgetsTheExecsOfADeadContainerd) {
  const Client keeper = Sleeper("lost");
  const Client task = vm_->Dial(kTaskPort);
  {
    TestStream in(*vm_, "lost1-stdin");
    ASSERT_EQ(Exec(task, "lost", "lost1", {"cat"}, /*in=*/true), absl::OkStatus());
    ASSERT_EQ(Start(task, "lost", "lost1"), absl::OkStatus());
    in.Drop();
  }
  asio::post(vm_->context(), [task] { task->Close(); });
  // Its stdin ends, so it ends, and nobody knows it any more.
  const auto gone = Wait(keeper, "lost", "lost1");
  EXPECT_TRUE(gone.ok() || absl::IsNotFound(gone.status())) << gone.status();
  EXPECT_EQ(State(keeper, "lost", "lost1").status().code(), absl::StatusCode::kNotFound);
  KillAndDelete(keeper, "lost");
}

}  // namespace
}  // namespace magnetar::guest::testing
