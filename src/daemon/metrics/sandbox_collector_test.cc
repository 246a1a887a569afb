#include "src/daemon/metrics/sandbox_collector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/metrics/fake_metrics.h"
#include "src/daemon/metrics/prometheus_metrics.h"
#include "src/daemon/sandbox/testing/fake_world.h"
#include "vmm/file_share.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

class SandboxCollectorTest : public testing::Test {
 protected:
  SandboxCollectorTest() { world_.env().metrics = &counted_; }
  ~SandboxCollectorTest() override { std::filesystem::remove_all(proc_); }

  absl::Status Start(const std::string& id) {
    MAGNETAR_RETURN_IF_ERROR(world_.Create(id));
    auto sandbox = world_.Get(id);
    return world_.Await(sandbox, sandbox->Start()).status();
  }
  // A process of that many KiB, in a directory that stands for /proc.
  void Process(int64_t pid, uint64_t started, int kib) {
    const std::filesystem::path directory = proc_ / absl::StrCat(pid);
    std::filesystem::create_directories(directory / "task" / absl::StrCat(pid));
    std::ofstream(directory / "stat")
        << pid << " (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 " << started << " 1 1\n";
    std::ofstream(directory / "status") << "Name:\tqemu\nVmRSS:\t9 kB\nRssAnon:\t    " << kib
                                        << " kB\nRssFile:\t  2 kB\nRssShmem:\t 3 kB\nThreads:\t1\n";
  }
  std::string Text() {
    auto metrics = PrometheusMetrics::Create({"1", "qemu", "tcg"});
    metrics->Add(std::make_shared<SandboxCollector>(&world_.manager(), proc_.string()));
    return metrics->Text();
  }

  FakeMetrics counted_;
  FakeWorld world_;
  const std::filesystem::path proc_ = [] {
    char name[] = "/tmp/proc.XXXXXX";
    return std::filesystem::path(::mkdtemp(name));
  }();
};

TEST_F(SandboxCollectorTest, CountsStatesAndWhatWasGiven) {
  ASSERT_TRUE(Start("a").ok());
  ASSERT_TRUE(Start("b").ok());
  ASSERT_TRUE(world_.Create("c").ok());
  auto stopped = world_.Get("b");
  ASSERT_TRUE(world_.Await(stopped, stopped->Stop()).ok());
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("magnetar_sandboxes{state=\"ready\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("magnetar_sandboxes{state=\"created\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("magnetar_sandboxes{state=\"notready\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("magnetar_sandboxes{state=\"starting\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("magnetar_guest_vcpus 1\n"));
  const Record record = world_.Get("a")->record();
  EXPECT_GT(record.memory_bytes, 0U);
  EXPECT_THAT(text,
              HasSubstr(absl::StrCat("magnetar_guest_memory_bytes ", record.memory_bytes, "\n")));
}

TEST_F(SandboxCollectorTest, SumsTheMemoryOfProcesses) {
  ASSERT_TRUE(Start("a").ok());
  ASSERT_TRUE(Start("b").ok());
  for (const char* id : {"a", "b"}) {
    const std::vector<RecordedProcess> processes = world_.Get(id)->record().processes;
    ASSERT_EQ(processes.size(), 1U);
    ASSERT_TRUE(processes[0].vmm);
    Process(processes[0].identity.pid, processes[0].identity.start_time_ticks, 100);
  }
  std::string text = Text();
  EXPECT_THAT(text, HasSubstr("magnetar_vm_processes{process=\"vmm\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("magnetar_vm_processes{process=\"supervisor\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("{process=\"vmm\",backing=\"anon\"} 204800\n"));
  EXPECT_THAT(text, HasSubstr("{process=\"vmm\",backing=\"file\"} 4096\n"));
  EXPECT_THAT(text, HasSubstr("{process=\"vmm\",backing=\"shmem\"} 6144\n"));
  // Another process that has its number by now.
  const ProcessIdentity identity = world_.Get("a")->record().processes[0].identity;
  Process(identity.pid, identity.start_time_ticks + 1, 100);
  EXPECT_THAT(Text(), HasSubstr("magnetar_vm_processes{process=\"vmm\"} 0\n"));
}

TEST_F(SandboxCollectorTest, AFileServerWorksInAChild) {
  ASSERT_TRUE(Start("a").ok());
  Record record = world_.Get("a")->record();
  const ProcessIdentity identity = record.processes[0].identity;
  record.processes[0].vmm = false;
  record.processes[0].name = vmm::kVirtiofs.server;
  // What a daemon that comes later reads.
  ASSERT_TRUE(WriteRecord(world_.Directory("a"), record).ok());
  Process(identity.pid, identity.start_time_ticks, 10);
  Process(77, 5, 20);
  std::ofstream(proc_ / absl::StrCat(identity.pid) / "task" / absl::StrCat(identity.pid) /
                "children")
      << "77 ";
  world_.Restart();
  ASSERT_TRUE(world_.Await(world_.manager().Recover()).ok());
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("magnetar_vm_processes{process=\"file_server\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("{process=\"file_server\",backing=\"anon\"} 30720\n"));
}

// What the daemon's parts tell of their work.
TEST_F(SandboxCollectorTest, StartsAndTheirPhasesAreCounted) {
  ASSERT_TRUE(Start("a").ok());
  EXPECT_EQ(counted_.Count("start OK"), 1);
  EXPECT_EQ(counted_.All("phase").size(), 5U) << "one of each, and none without a time";
  for (const auto& [what, count] : counted_.All("phase")) EXPECT_EQ(count, 1) << what;
  world_.Fail("supervisor.ready", absl::DeadlineExceededError("not ready"));
  EXPECT_FALSE(Start("b").ok());
  EXPECT_EQ(counted_.Count("start DEADLINE_EXCEEDED"), 1);
  EXPECT_EQ(counted_.Count("phase launch OK"), 2);
  EXPECT_EQ(counted_.Count("phase ready OK"), 1);
  EXPECT_EQ(counted_.Count("phase ready DEADLINE_EXCEEDED"), 1);
  EXPECT_EQ(counted_.Count("phase setup OK"), 1);
  EXPECT_EQ(counted_.Count("teardown"), 1);
  EXPECT_EQ(counted_.Count("vm asked"), 1);
}

TEST_F(SandboxCollectorTest, EndsOfVmsAreCountedByReason) {
  for (const char* id : {"asked", "died"}) ASSERT_TRUE(Start(id).ok());
  auto sandbox = world_.Get("asked");
  ASSERT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_EQ(counted_.All("vm"), (std::map<std::string, int>{{"vm asked", 1}}));
  world_.KillVm("died");
  counted_.WaitFor("vm died");
  EXPECT_EQ(counted_.All("vm").size(), 2U);
}

// As its supervisor has written it.
TEST_F(SandboxCollectorTest, EndsWhileNoDaemonRanAreCountedByReason) {
  const std::pair<const char*, const char*> ends[] = {
      {R"({"status": 137, "reason": "qemu: x", "unkillable": true})", "vm unkillable"},
      {R"({"status": 0, "reason": "qemu: exited with status 0"})", "vm guest"},
      {R"({"status": 137, "reason": "qemu: killed by SIGKILL", "unkillable": 1})", "vm died"},
  };
  int ended = 0;
  for (const auto& [exit, counted] : ends) {
    const std::string id = absl::StrCat("a", ended);
    ASSERT_TRUE(Start(id).ok());
    const std::string record = world_.Directory(id) + "/sandbox.json";
    const std::string ready = ReadFile(record).value();
    world_.KillVm(id);
    world_.WaitFor("cgroup.remove", ++ended);
    world_.Restart();
    FakeMetrics metrics;
    world_.env().metrics = &metrics;
    ASSERT_TRUE(WriteFileAtomically(record, ready).ok());
    ASSERT_TRUE(WriteFileAtomically(world_.Directory(id) + "/exit.json", exit).ok());
    ASSERT_TRUE(world_.Await(world_.manager().Recover()).ok());
    EXPECT_EQ(metrics.All("vm"), (std::map<std::string, int>{{counted, 1}}));
    world_.Restart();
    world_.env().metrics = &counted_;
    ASSERT_TRUE(world_.Await(world_.manager().Recover()).ok());
  }
}

TEST_F(SandboxCollectorTest, AHungGuestIsCountedAndWhatItMissed) {
  world_.config.guest.heartbeat = std::chrono::seconds(1);
  world_.Restart();
  world_.env().metrics = &counted_;
  ASSERT_TRUE(Start("a").ok());
  EXPECT_THAT(Text(), HasSubstr("magnetar_agent_peak_resident_memory_bytes 0\n"));
  world_.WaitFor("agent.beat", 2);
  EXPECT_THAT(Text(), HasSubstr("magnetar_agent_peak_resident_memory_bytes 3145728\n"));
  world_.HangGuest(true);
  counted_.WaitFor("vm hung");
  EXPECT_GE(counted_.Count("heartbeat missed"), 2);
}

TEST_F(SandboxCollectorTest, FailuresOfATeardownAreCountedByStep) {
  ASSERT_TRUE(Start("a").ok());
  world_.Fail("cgroup.remove", absl::InternalError("busy"));
  auto sandbox = world_.Get("a");
  EXPECT_FALSE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_EQ(counted_.Count("teardown failed cgroup"), 1);
  EXPECT_EQ(counted_.Count("teardown"), 1);
}

}  // namespace
}  // namespace magnetar::daemon
