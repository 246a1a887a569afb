#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

class HeartbeatTest : public testing::Test {
 protected:
  void Start(std::chrono::seconds heartbeat) {
    world_.config.guest.heartbeat = heartbeat;
    world_.Restart();
    ASSERT_TRUE(world_.Create("a").ok());
    auto sandbox = world_.Get("a");
    ASSERT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
  }
  void Recover() {
    auto both = [](SandboxManager* manager) -> Co<absl::Status> {
      auto first = manager->Recover();
      absl::Status status = co_await std::move(first);
      auto second = manager->RecoverGuests();
      co_await std::move(second);
      co_return status;
    };
    EXPECT_TRUE(world_.Await(both(&world_.manager())).ok());
  }
  SandboxState State() { return world_.Get("a")->snapshot()->state; }

  FakeWorld world_;
};

// Three refusals take a third of the time that a guest may be silent.
TEST_F(HeartbeatTest, RefusalsAtOnceAreNoHang) {
  Start(std::chrono::seconds(6));
  world_.Fail("agent.beat", absl::UnavailableError("too many connections"));
  world_.WaitFor("agent.beat", 3);
  world_.Heal();
  world_.WaitFor("agent.beat", 5);
  EXPECT_EQ(State(), SandboxState::kReady);
  EXPECT_EQ(world_.Count("supervisor.kill"), 0);
}

TEST_F(HeartbeatTest, RefusalsForLongAreAHang) {
  Start(std::chrono::seconds(1));
  world_.Fail("agent.beat", absl::UnavailableError("nothing listens"));
  world_.WaitFor("cgroup.remove");
  EXPECT_EQ(State(), SandboxState::kNotReady);
  EXPECT_GE(world_.Count("agent.beat"), 2);
}

// The heartbeat's own thread lives.
TEST_F(HeartbeatTest, AMainLoopThatStandsStillIsAHang) {
  Start(std::chrono::seconds(1));
  world_.StopMainLoop(std::chrono::milliseconds(900));
  world_.WaitFor("agent.beat", 2);
  EXPECT_EQ(State(), SandboxState::kReady);
  world_.StopMainLoop(std::chrono::milliseconds(1001));
  world_.WaitFor("cgroup.remove");
  EXPECT_EQ(State(), SandboxState::kNotReady);
}

TEST_F(HeartbeatTest, RecoveryKillsNoGuestThatLives) {
  Start(std::chrono::seconds(0));
  for (const char* call : {"driver.attach", "agent.dial", "agent.hello"}) {
    world_.Restart();
    world_.Fail(call, absl::UnavailableError("another daemon holds it"));
    Recover();
    EXPECT_EQ(State(), SandboxState::kReady) << call;
    // It is served as soon as that works.
    const int served = world_.Count("agent.list");
    world_.Heal();
    world_.WaitFor("agent.list", served + 1);
  }
  EXPECT_EQ(world_.Count("supervisor.kill"), 0);
  EXPECT_EQ(State(), SandboxState::kReady);
}

TEST_F(HeartbeatTest, RecoveryKillsOneWhoseMainLoopStandsStill) {
  Start(std::chrono::seconds(1));
  world_.StopMainLoop(std::chrono::milliseconds(5000));
  world_.Restart();
  Recover();
  EXPECT_EQ(State(), SandboxState::kNotReady);
}

TEST_F(HeartbeatTest, AnAgentThatIsTooOldIsRefusedByName) {
  world_.agent_protocol = 0;
  ASSERT_TRUE(world_.Create("a").ok());
  auto sandbox = world_.Get("a");
  const auto started = world_.Await(sandbox, sandbox->Start());
  EXPECT_TRUE(absl::IsFailedPrecondition(started.status())) << started.status();
  EXPECT_THAT(std::string(started.status().message()), HasSubstr("protocol 0"));
}

TEST_F(HeartbeatTest, WhatTheAgentCanIsRecorded) {
  Start(std::chrono::seconds(0));
  EXPECT_EQ(world_.Get("a")->record().agent_protocol, 1u);
  EXPECT_THAT(world_.Get("a")->record().agent_features, testing::Contains("feature"));
}

}  // namespace
}  // namespace magnetar::daemon
