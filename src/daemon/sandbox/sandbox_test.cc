#include "src/daemon/sandbox/sandbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

bool Exists(const std::string& path) {
  struct stat st;
  return ::stat(path.c_str(), &st) == 0;
}

class SandboxTest : public testing::Test {
 protected:
  std::shared_ptr<Sandbox> Started(const std::string& id) {
    EXPECT_TRUE(world_.Create(id).ok());
    auto sandbox = world_.Get(id);
    auto started = world_.Await(sandbox, sandbox->Start());
    EXPECT_TRUE(started.ok()) << started.status();
    return sandbox;
  }
  std::future<absl::StatusOr<SandboxExit>> Wait(const std::shared_ptr<Sandbox>& sandbox) {
    auto promise = std::make_shared<std::promise<absl::StatusOr<SandboxExit>>>();
    auto add = [](std::shared_ptr<Sandbox> s, auto p) -> Co<bool> {
      s->AddWait([p](absl::StatusOr<SandboxExit> exit) { p->set_value(exit); });
      co_return true;
    };
    world_.Await(sandbox, add(sandbox, promise));
    return promise->get_future();
  }
  void ExpectGone(const std::string& id) {
    EXPECT_TRUE(absl::IsNotFound(world_.manager().Find(id).status()));
    EXPECT_FALSE(Exists(world_.Directory(id)));
    EXPECT_THAT(world_.Residues(), IsEmpty());
  }

  FakeWorld world_;
};

TEST_F(SandboxTest, LivesFromCreateToShutdown) {
  auto sandbox = Started("a");
  auto now = sandbox->snapshot();
  EXPECT_EQ(now->state, SandboxState::kReady);
  EXPECT_EQ(now->pid, 1u << 23);
  EXPECT_EQ(now->address, "ttrpc+hvsock://" + world_.Directory("a") + "/vm.vsock:1024");
  EXPECT_EQ(world_.Residues().size(), 4u);
  auto exit = Wait(sandbox);

  EXPECT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kNotReady);
  EXPECT_EQ(sandbox->snapshot()->pid, 0u);
  EXPECT_NE(sandbox->snapshot()->exited_at_ns, 0);
  EXPECT_EQ(exit.get()->status, 0u);
  EXPECT_EQ(world_.Count("agent.shutdown"), 1);
  EXPECT_THAT(world_.Residues(), IsEmpty());
  EXPECT_TRUE(Exists(world_.Directory("a") + "/sandbox.json"));

  // Again and again.
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_TRUE(Wait(sandbox).get().ok());
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  ExpectGone("a");
  EXPECT_TRUE(absl::IsNotFound(world_.Await(sandbox, sandbox->Shutdown())));
}

TEST_F(SandboxTest, ShutdownAloneDoesEverything) {
  auto sandbox = Started("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  ExpectGone("a");
}

TEST_F(SandboxTest, TheLadderHasOneOrder) {
  auto sandbox = Started("a");
  world_.Fail("agent.shutdown", absl::DeadlineExceededError("busy"));
  world_.Fail("vm.quit", absl::UnavailableError("busy"));
  const size_t before = world_.calls().size();
  ASSERT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  auto calls = world_.calls();
  calls.erase(calls.begin(), calls.begin() + static_cast<long>(before));
  std::erase_if(calls, [](const std::string& c) { return c == "agent.list"; });
  EXPECT_THAT(
      calls, testing::ElementsAre("agent.shutdown", "vm.quit", "supervisor.kill", "storage.unmount",
                                  "shared.remove", "network.detach", "cgroup.remove"));
}

TEST_F(SandboxTest, CreateIsAtomic) {
  ASSERT_TRUE(world_.Create("a").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(world_.Create("a")));
  PodRequest pod;
  pod.id = "b";
  pod.netns_path = "/etc/passwd";
  const absl::Status status = world_.Await(world_.manager().Create(pod, "k8s.io"));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("netns_path"));
  EXPECT_FALSE(Exists(world_.Directory("b")));
  EXPECT_TRUE(world_.Create("b").ok());
}

TEST_F(SandboxTest, StartOnlyOnce) {
  auto sandbox = Started("a");
  EXPECT_TRUE(absl::IsFailedPrecondition(world_.Await(sandbox, sandbox->Start()).status()));
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kReady);
}

class StartFailureTest : public SandboxTest, public testing::WithParamInterface<const char*> {};

// Whatever fails, nothing is left, and the id can be used again.
TEST_P(StartFailureTest, LeavesNothing) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.Fail(GetParam(), absl::InternalError("as told"));
  const auto started = world_.Await(sandbox, sandbox->Start());
  EXPECT_EQ(started.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(started.status().message()), HasSubstr("as told"));
  ExpectGone("a");
  EXPECT_TRUE(Wait(sandbox).get().ok());
  world_.Heal();
  ASSERT_TRUE(world_.Create("a").ok());
  sandbox = world_.Get("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
}

INSTANTIATE_TEST_SUITE_P(EveryStep, StartFailureTest,
                         testing::Values("cgroup.create", "network.attach", "shared.make",
                                         "driver.plan", "supervisor.launch", "supervisor.ready",
                                         "supervisor.state", "driver.attach", "agent.dial",
                                         "agent.hello", "agent.setup"));

// The guest's clock is late by what a greeting took.
TEST_F(SandboxTest, GreetsAGuestUntilThatIsFast) {
  world_.greetings_take.assign(3, std::chrono::milliseconds(20));
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
  EXPECT_GE(world_.Count("agent.hello"), 4);
  EXPECT_TRUE(world_.greetings_take.empty());
}

TEST_F(SandboxTest, AGuestWhoseGreetingsNeverAreFastStarts) {
  world_.greetings_take.assign(100, std::chrono::milliseconds(20));
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
  EXPECT_EQ(world_.Count("agent.hello"), 9);
}

TEST_F(SandboxTest, StopEndsAStartInFlight) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.HangGuest(true);
  auto start = world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor("supervisor.ready");
  const absl::Status stopped = world_.Await(sandbox, sandbox->Stop());
  EXPECT_TRUE(absl::IsNotFound(stopped)) << stopped;
  EXPECT_TRUE(absl::IsCancelled(start.get().status()));
  ExpectGone("a");
}

TEST_F(SandboxTest, AStartWhoseCallerGoesIsUndone) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.HangGuest(true);
  auto start = world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor("supervisor.ready");
  asio::post(sandbox->strand(), [sandbox] { sandbox->CancelStart(); });
  EXPECT_TRUE(absl::IsCancelled(start.get().status()));
  ExpectGone("a");
}

struct Cut {
  const char* held;
  const char* next;
};

class StartCutTest : public SandboxTest, public testing::WithParamInterface<Cut> {};

// A start whose caller has gone goes no further than the step that it was at.
TEST_P(StartCutTest, GoesNoFurther) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.Hold(GetParam().held);
  auto start = world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor(GetParam().held);
  auto cancel = [](std::shared_ptr<Sandbox> s) -> Co<bool> {
    s->CancelStart();
    co_return true;
  };
  world_.Await(sandbox, cancel(sandbox));
  world_.Release();
  EXPECT_TRUE(absl::IsCancelled(start.get().status()));
  EXPECT_EQ(world_.Count(GetParam().next), 0);
  ExpectGone("a");
}

INSTANTIATE_TEST_SUITE_P(
    EveryStep, StartCutTest,
    testing::Values(Cut{"cgroup.create", "network.attach"}, Cut{"network.attach", "shared.make"},
                    Cut{"shared.make", "driver.plan"}, Cut{"supervisor.launch", "supervisor.ready"},
                    Cut{"supervisor.ready", "driver.attach"}, Cut{"agent.setup", "agent.list"}));

// The netns may be tied to another pod's VM, which is why it was refused.
TEST_F(SandboxTest, AnAttachThatFailedIsNotUndone) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.Fail("network.attach", absl::FailedPreconditionError("tied to a living VM already"));
  EXPECT_TRUE(absl::IsFailedPrecondition(world_.Await(sandbox, sandbox->Start()).status()));
  EXPECT_EQ(world_.Count("network.detach"), 0);
  ExpectGone("a");
}

TEST_F(SandboxTest, ProcessesAreKnownBeforeTheGuestIsReady) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.Hold("supervisor.ready");
  auto start = world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor("supervisor.ready");
  EXPECT_FALSE(ReadRecord(world_.Directory("a"))->processes.empty());
  EXPECT_NE(ReadRecord(world_.Directory("a"))->vmm_pid, 0u);
  world_.Release();
  EXPECT_TRUE(start.get().ok());
}

TEST_F(SandboxTest, AUidIsGivenBackOnce) {
  auto sandbox = Started("a");
  EXPECT_NE(sandbox->record().uid, 0u);
  ASSERT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_EQ(ReadRecord(world_.Directory("a"))->uid, 0u);
  auto other = Started("b");
  ASSERT_TRUE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  // The one that the other has now is still its own.
  EXPECT_NE(Started("c")->record().uid, other->record().uid);
}

TEST_F(SandboxTest, AWaitIsAnsweredOnceTheVmIsDead) {
  auto sandbox = Started("a");
  auto exit = Wait(sandbox);
  world_.Hold("network.detach");
  auto stop = world_.Begin(sandbox, sandbox->Stop());
  EXPECT_TRUE(exit.get().ok());
  // One that comes now, too.
  const auto late = Wait(sandbox).get();
  ASSERT_TRUE(late.ok());
  EXPECT_NE(late->exited_at_ns, 0);
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kStopping);
  world_.Release();
  EXPECT_TRUE(stop.get().ok());
}

TEST_F(SandboxTest, AWaitForAFailedStartTellsATime) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  auto exit = Wait(sandbox);
  world_.Fail("driver.plan", absl::InternalError("as told"));
  EXPECT_FALSE(world_.Await(sandbox, sandbox->Start()).ok());
  const auto told = exit.get();
  ASSERT_TRUE(told.ok());
  EXPECT_NE(told->exited_at_ns, 0);
}

TEST_F(SandboxTest, AVmThatDiesWhileStartingFailsTheStart) {
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  world_.HangGuest(true);
  auto start = world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor("supervisor.ready");
  world_.KillVm("a");
  EXPECT_TRUE(absl::IsFailedPrecondition(start.get().status()));
  ExpectGone("a");
}

TEST_F(SandboxTest, AVmThatDiesIsNotReadyAndLeavesNothing) {
  auto sandbox = Started("a");
  auto exit = Wait(sandbox);
  world_.KillVm("a");
  EXPECT_EQ(exit.get()->status, 139u);
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kNotReady);
  world_.WaitFor("cgroup.remove");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  EXPECT_THAT(world_.Residues(), IsEmpty());
  EXPECT_EQ(world_.Count("agent.shutdown"), 0);
  EXPECT_EQ(sandbox->record().exit_reason, "qemu: killed by SIGSEGV");
}

TEST_F(SandboxTest, AnUnfinishedTeardownIsToldAndRepeated) {
  auto sandbox = Started("a");
  world_.Fail("network.detach", absl::InternalError("as told"));
  EXPECT_FALSE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kNotReady);
  EXPECT_THAT(world_.Residues(), testing::ElementsAre("network /proc/self/ns/net"));
  // By the uid the next attempt knows which taps are its.
  EXPECT_NE(sandbox->record().uid, 0u);
  world_.Heal();
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Shutdown()).ok());
  ExpectGone("a");
}

TEST_F(SandboxTest, AHungGuestIsKilledAfterASecondProbe) {
  world_.config.guest.heartbeat = std::chrono::seconds(1);
  world_.Restart();
  auto sandbox = Started("a");
  auto exit = Wait(sandbox);
  world_.WaitFor("agent.beat");
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kReady);
  world_.HangGuest(true);
  EXPECT_EQ(exit.get()->status, 137u);
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kNotReady);
  // The first beat may be the one that stays unanswered; the second probe always comes.
  EXPECT_GE(world_.Count("agent.beat"), 2);
}

TEST_F(SandboxTest, AWaitIsUnavailableWhenTheDaemonEnds) {
  auto sandbox = Started("a");
  auto exit = Wait(sandbox);
  auto detach = [](SandboxManager* manager) -> Co<bool> {
    auto all = manager->DetachAll(std::chrono::seconds(60));
    co_await std::move(all);
    co_return true;
  };
  world_.Await(detach(&world_.manager()));
  EXPECT_TRUE(absl::IsUnavailable(exit.get().status()));
  EXPECT_EQ(sandbox->snapshot()->state, SandboxState::kReady);
  EXPECT_EQ(world_.Count("supervisor.kill"), 0);
  // What comes in between gets no other answer.
  EXPECT_TRUE(absl::IsUnavailable(world_.Create("b")));
  EXPECT_TRUE(absl::IsUnavailable(Wait(sandbox).get().status()));
}

TEST_F(SandboxTest, TheDaemonsEndDoesNotWaitForLong) {
  ASSERT_TRUE(world_.Create("a").ok());
  ASSERT_TRUE(world_.Create("b").ok());
  auto sandbox = world_.Get("a");
  world_.Hold("cgroup.create");
  auto start = world_.Begin(sandbox, sandbox->Start());
  world_.WaitFor("cgroup.create");
  auto detach = [](SandboxManager* manager) -> Co<bool> {
    auto all = manager->DetachAll(std::chrono::milliseconds(10));
    co_await std::move(all);
    co_return true;
  };
  world_.Await(detach(&world_.manager()));
  auto other = world_.Get("b");
  EXPECT_TRUE(absl::IsUnavailable(world_.Await(other, other->Start()).status()));
  world_.Release();
  EXPECT_TRUE(absl::IsCancelled(start.get().status()));
}

TEST_F(SandboxTest, UpdateNeverTakesTheVmsOwnMemory) {
  auto sandbox = Started("a");
  UpdatedResources resources;
  resources.resources.set_memory_limit_in_bytes(1 << 20);
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Update(resources)).ok());
  EXPECT_GE(world_.updated_memory_bytes.load(), sandbox->record().memory_bytes + (256u << 20));
}

TEST_F(SandboxTest, UpdateAndMetricsReachTheCgroup) {
  auto sandbox = Started("a");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Metrics()).ok());
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Update({})).ok());
  EXPECT_EQ(world_.Count("cgroup.update"), 1);
  world_.Fail("cgroup.metrics", absl::NotFoundError("gone"));
  EXPECT_FALSE(world_.Await(sandbox, sandbox->Metrics()).ok());
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  // One that is over counts as nothing, and does not spoil the list of all pods.
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Metrics()).ok());
}

}  // namespace
}  // namespace magnetar::daemon
