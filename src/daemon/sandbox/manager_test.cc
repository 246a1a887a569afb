#include "src/daemon/sandbox/manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "magnetar/files.h"
#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

using ::testing::IsEmpty;

class ManagerTest : public testing::Test {
 protected:
  void Recover() {
    auto both = [](SandboxManager* manager) -> Co<absl::Status> {
      auto first = manager->Recover();
      const absl::Status status = co_await std::move(first);
      auto second = manager->RecoverGuests();
      co_await std::move(second);
      co_return status;
    };
    EXPECT_TRUE(world_.Await(both(&world_.manager())).ok());
  }
  void Sweep() {
    auto sweep = [](SandboxManager* manager) -> Co<bool> {
      auto once = manager->SweepOrphans();
      co_await std::move(once);
      co_return true;
    };
    world_.Await(sweep(&world_.manager()));
  }
  void Start(const std::string& id) {
    ASSERT_TRUE(world_.Create(id).ok());
    auto sandbox = world_.Get(id);
    ASSERT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
  }
  SandboxState State(const std::string& id) { return world_.Get(id)->snapshot()->state; }

  FakeWorld world_;
};

TEST_F(ManagerTest, ARunningSandboxIsFoundAgain) {
  Start("a");
  const auto before = *world_.Get("a")->snapshot();
  world_.Restart();
  Recover();
  const auto after = *world_.Get("a")->snapshot();
  EXPECT_EQ(after.state, SandboxState::kReady);
  EXPECT_EQ(after.pid, before.pid);
  EXPECT_EQ(after.created_at_ns, before.created_at_ns);
  EXPECT_EQ(after.containerd_namespace, "k8s.io");
  // No uid is given out twice.
  Start("b");
  EXPECT_NE(world_.Get("a")->record().uid, world_.Get("b")->record().uid);
  auto sandbox = world_.Get("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  EXPECT_EQ(world_.Count("agent.shutdown"), 1);
}

TEST_F(ManagerTest, AVmThatDiedMeanwhileIsNotReady) {
  Start("a");
  world_.KillVm("a");
  world_.WaitFor("cgroup.remove");
  // As if the daemon had been away: the record still says ready.
  Start("b");
  const std::string record = ReadFile(world_.Directory("b") + "/sandbox.json").value();
  world_.KillVm("b");
  world_.WaitFor("cgroup.remove", 2);
  world_.Restart();
  ASSERT_TRUE(WriteFileAtomically(world_.Directory("b") + "/sandbox.json", record).ok());
  ASSERT_TRUE(WriteFileAtomically(world_.Directory("b") + "/exit.json",
                                  R"({"status": 139, "exited_at_ns": 5, "reason": "qemu: x"})")
                  .ok());
  Recover();
  EXPECT_EQ(State("b"), SandboxState::kNotReady);
  EXPECT_EQ(world_.Get("b")->snapshot()->exit_status, 139u);
  EXPECT_EQ(world_.Get("b")->snapshot()->exited_at_ns, 5);
  auto sandbox = world_.Get("b");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  EXPECT_THAT(world_.Residues(), IsEmpty());
}

class CutOffTest : public ManagerTest, public testing::WithParamInterface<const char*> {};

// The daemon dies while this call is under way.
TEST_P(CutOffTest, AStartIsUndone) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.Hold(GetParam());
  (void)world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor(GetParam());
  sandbox.reset();
  world_.Restart();
  Recover();
  EXPECT_TRUE(absl::IsNotFound(world_.manager().Find("a").status()));
  EXPECT_THAT(world_.Residues(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(EveryStep, CutOffTest,
                         testing::Values("cgroup.create", "network.attach", "shared.make",
                                         "supervisor.launch", "supervisor.ready", "agent.setup"));

// A daemon that has just come, before it has talked to the guest.
TEST_F(ManagerTest, AStopAsksAGuestThatIsNotConnected) {
  Start("a");
  world_.Restart();
  EXPECT_TRUE(world_.Await(world_.manager().Recover()).ok());
  auto sandbox = world_.Get("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_EQ(world_.Count("agent.shutdown"), 1);
}

TEST_F(ManagerTest, ARecordThatCannotBeReadNowEndsNoPod) {
  Start("a");
  const std::string file = world_.Directory("a") + "/sandbox.json";
  const std::string record = ReadFile(file).value();
  const uint32_t uid = world_.Get("a")->record().uid;
  world_.Restart();
  // Longer than what is read.
  ASSERT_TRUE(WriteFileAtomically(file, std::string(5 << 20, ' ')).ok());
  Recover();
  EXPECT_TRUE(absl::IsNotFound(world_.manager().Find("a").status()));
  EXPECT_EQ(world_.Count("supervisor.kill"), 0);
  EXPECT_EQ(world_.Residues().size(), 4u);
  // Nor is its VM's uid another's.
  Start("b");
  if (::geteuid() == 0) {
    EXPECT_NE(world_.Get("b")->record().uid, uid);
  }
  world_.Restart();
  ASSERT_TRUE(WriteFileAtomically(file, record).ok());
  Recover();
  EXPECT_EQ(State("a"), SandboxState::kReady);
}

TEST_F(ManagerTest, ASupervisorThatIsSlowIsNotDead) {
  Start("a");
  for (const char* call : {"supervisor.connect", "supervisor.state"}) {
    world_.Restart();
    world_.Fail(call, absl::DeadlineExceededError("slow"));
    const int asked = world_.Count(call);
    auto recovered = world_.Begin(world_.manager().Recover());
    world_.WaitFor(call, asked + 3);
    world_.Heal();
    EXPECT_TRUE(recovered.get().ok());
    EXPECT_EQ(State("a"), SandboxState::kReady) << call;
  }
  EXPECT_EQ(world_.Count("supervisor.kill"), 0);
}

TEST_F(ManagerTest, NoGuestMakesItsRecordUnreadable) {
  world_.NameFeatures({});
  Start("a");
  world_.NameFeatures(std::vector<std::string>(65, "x"));
  world_.Restart();
  Recover();
  world_.NameFeatures({std::string(65, 'x')});
  world_.Restart();
  Recover();
  EXPECT_EQ(State("a"), SandboxState::kReady);
  EXPECT_THAT(world_.Get("a")->record().agent_features, IsEmpty());
}

TEST_F(ManagerTest, ARunDirectoryThatCannotBeReadIsNoEmptyOne) {
  world_.env().config.run_dir = "/nonexistent";
  EXPECT_FALSE(world_.Await(world_.manager().Recover()).ok());
}

TEST_F(ManagerTest, ACleanupWithoutARecordIsTriedAgain) {
  ASSERT_TRUE(MakeDirectories(world_.Directory("a") + "/vmm").ok());
  world_.env().config.containerd.orphan_after = std::chrono::seconds(60);
  world_.Fail("cgroup.remove", absl::InternalError("busy"));
  Recover();
  EXPECT_EQ(State("a"), SandboxState::kNotReady);
  world_.Heal();
  // Nobody could be asked for it.
  world_.containerd.failure = absl::UnavailableError("away");
  Sweep();
  EXPECT_TRUE(absl::IsNotFound(world_.manager().Find("a").status()));
}

TEST_F(ManagerTest, ASandboxThatWasOnlyCreatedCanStillBeStarted) {
  ASSERT_TRUE(world_.Create("a").ok());
  world_.Restart();
  Recover();
  EXPECT_EQ(State("a"), SandboxState::kCreated);
  auto sandbox = world_.Get("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
}

TEST_F(ManagerTest, AStoppedOneStaysStopped) {
  Start("a");
  auto sandbox = world_.Get("a");
  ASSERT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  const int64_t exited = sandbox->snapshot()->exited_at_ns;
  sandbox.reset();
  world_.Restart();
  Recover();
  EXPECT_EQ(State("a"), SandboxState::kNotReady);
  EXPECT_EQ(world_.Get("a")->snapshot()->exited_at_ns, exited);
}

TEST_F(ManagerTest, AHungGuestIsKilledAtRecovery) {
  Start("a");
  world_.config.guest.heartbeat = std::chrono::seconds(1);
  world_.Restart();
  world_.HangGuest(true);
  Recover();
  EXPECT_EQ(State("a"), SandboxState::kNotReady);
  EXPECT_THAT(world_.Residues(), IsEmpty());
}

TEST_F(ManagerTest, ADirectoryWithoutARecordIsCleanedUp) {
  ASSERT_TRUE(MakeDirectories(world_.Directory("a") + "/vmm").ok());
  ASSERT_TRUE(MakeDirectories(world_.Directory("b")).ok());
  ASSERT_TRUE(WriteFileAtomically(world_.Directory("b") + "/sandbox.json", "{\"sch").ok());
  ASSERT_TRUE(MakeDirectories(world_.Directory("c")).ok());
  ASSERT_TRUE(
      WriteFileAtomically(world_.Directory("c") + "/sandbox.json", "{\"schema\": 99}").ok());
  world_.Restart();
  Recover();
  struct stat st;
  EXPECT_NE(::stat(world_.Directory("a").c_str(), &st), 0);
  EXPECT_NE(::stat(world_.Directory("b").c_str(), &st), 0);
  // A newer daemon's: not touched.
  EXPECT_EQ(::stat(world_.Directory("c").c_str(), &st), 0);
}

TEST_F(ManagerTest, OrphansGoOnlyWhenContainerdSaysSo) {
  Start("a");
  Start("b");
  world_.env().config.containerd.orphan_after = std::chrono::seconds(60);
  world_.containerd.sandboxes = {"a"};
  Sweep();  // too young
  EXPECT_EQ(State("b"), SandboxState::kReady);
  world_.Advance(std::chrono::seconds(61));
  world_.containerd.failure = absl::UnavailableError("away");
  Sweep();
  EXPECT_EQ(State("b"), SandboxState::kReady);
  world_.containerd.failure = absl::OkStatus();
  Sweep();
  EXPECT_TRUE(absl::IsNotFound(world_.manager().Find("b").status()));
  EXPECT_EQ(State("a"), SandboxState::kReady);
}

}  // namespace
}  // namespace magnetar::daemon
