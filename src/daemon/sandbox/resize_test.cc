// A running sandbox that is made larger and smaller.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/daemon/sandbox/sizes.h"
#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

class ResizeTest : public testing::Test {
 protected:
  std::shared_ptr<Sandbox> Started() {
    EXPECT_TRUE(world_.Create("a").ok());
    auto sandbox = world_.Get("a");
    EXPECT_TRUE(world_.Await(sandbox, sandbox->Start()).ok());
    // Before that it cannot be told anything.
    world_.WaitFor("agent.list");
    return sandbox;
  }
  static UpdatedResources Memory(uint64_t mib) {
    UpdatedResources out;
    out.resources.set_memory_limit_in_bytes(static_cast<int64_t>(mib * kMebibyte));
    return out;
  }
  absl::Status Update(const std::shared_ptr<Sandbox>& sandbox, const UpdatedResources& resources) {
    return world_.Await(sandbox, sandbox->Update(resources));
  }

  // To 1000 MiB, which the guest takes.
  void Grow(const std::shared_ptr<Sandbox>& sandbox) {
    ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
    world_.TakeMemory("a");
    ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
  }

  FakeWorld world_;
};

TEST_F(ResizeTest, GrowsAndShrinks) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  const uint64_t overhead = world_.env().config.vm.size.overhead_mib;
  UpdatedResources more = Memory(1000);
  more.resources.set_cpu_quota(300000);
  more.resources.set_cpu_period(100000);
  ASSERT_TRUE(Update(sandbox, more).ok());
  EXPECT_EQ(sandbox->record().vcpus, 3u);
  EXPECT_EQ(sandbox->record().wanted_memory_bytes, (1000 + overhead) * kMebibyte);
  EXPECT_EQ(sandbox->record().memory_bytes, boot);
  // The host has room for it before the guest takes it.
  EXPECT_GE(world_.updated_memory_bytes.load(), (1000 + overhead) * kMebibyte);
  const int told = world_.Count("agent.resize");
  world_.TakeMemory("a");
  world_.WaitFor("agent.resize", told + 1);
  // One resize at a time: that one is over when the same is asked for again.
  ASSERT_TRUE(Update(sandbox, more).ok());
  EXPECT_EQ(sandbox->record().memory_bytes, (1000 + overhead) * kMebibyte);

  ASSERT_TRUE(Update(sandbox, Memory(10)).ok());
  EXPECT_EQ(sandbox->record().wanted_memory_bytes, boot);
  EXPECT_EQ(sandbox->record().vcpus, 3u);
  EXPECT_EQ(world_.added_bytes.load(), 0u);
  // As long as the guest has it, the host leaves it.
  EXPECT_GE(world_.updated_memory_bytes.load(), (1000 + overhead) * kMebibyte);
  const int limited = world_.Count("cgroup.update");
  world_.TakeMemory("a");
  world_.WaitFor("cgroup.update", limited + 2);
  EXPECT_LT(world_.updated_memory_bytes.load(), (1000 + overhead) * kMebibyte);
}

// Linux' virtio_mem takes what is free, and leaves it to others to be killed.
TEST_F(ResizeTest, WhatIsInUseIsNotTaken) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  Grow(sandbox);
  const uint64_t large = sandbox->record().memory_bytes;
  ASSERT_GT(large, boot + 300 * kMebibyte);

  world_.spare_bytes = 101 * kMebibyte;
  ASSERT_TRUE(Update(sandbox, Memory(10)).ok());
  EXPECT_EQ(sandbox->record().wanted_memory_bytes, boot);
  const uint64_t asked = world_.requested_bytes.load();
  EXPECT_GE(asked, large - 101 * kMebibyte);
  EXPECT_LT(asked, large - 90 * kMebibyte);
  EXPECT_EQ((asked - boot) % vmm::kMemoryStep, 0u);
  // What is let go of is noticed without anybody's call.
  const int resized = world_.Count("vm.resize");
  world_.spare_bytes = int64_t{1} << 40;
  world_.WaitFor("vm.resize", resized + 1);
  EXPECT_EQ(world_.requested_bytes.load(), boot);
}

TEST_F(ResizeTest, AGuestThatCouldNotBeAskedIsAskedAgain) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  Grow(sandbox);
  world_.Fail("agent.resize", absl::DeadlineExceededError("busy"));
  UpdatedResources other = Memory(10);
  other.resources.set_cpu_quota(300000);
  other.resources.set_cpu_period(100000);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Update(sandbox, other)));
  // Its processors are there all the same.
  EXPECT_EQ(sandbox->record().vcpus, 3u);
  EXPECT_GT(world_.requested_bytes.load(), boot);
  const int resized = world_.Count("vm.resize");
  world_.Heal();
  world_.WaitFor("vm.resize", resized + 1);
  EXPECT_EQ(world_.requested_bytes.load(), boot);
}

TEST_F(ResizeTest, AGuestThatDoesNotSayWhatItCanSpareIsAskedForAll) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  world_.spare_bytes = -1;
  Grow(sandbox);
  ASSERT_TRUE(Update(sandbox, Memory(10)).ok());
  EXPECT_EQ(world_.requested_bytes.load(), boot);
}

TEST_F(ResizeTest, NoMoreThanThePodsCgroupHolds) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  world_.memory_limit_above = boot + (256 + 200) * kMebibyte;
  ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
  EXPECT_EQ(sandbox->record().wanted_memory_bytes, boot + 200 * kMebibyte);
  // The kubelet raises the limit first.
  world_.memory_limit_above = 0;
  ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
  EXPECT_GE(sandbox->record().wanted_memory_bytes, 1000 * kMebibyte);
}

TEST_F(ResizeTest, MoreThanItCanHaveIsRefusedAndChangesNothing) {
  auto sandbox = Started();
  const absl::Status status = Update(sandbox, Memory(uint64_t{1} << 40));
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_FALSE(sandbox->record().pod_updated);
  EXPECT_EQ(world_.Count("vm.resize") + world_.Count("cgroup.update"), 0);
}

TEST_F(ResizeTest, AGuestThatTakesItsTimeHoldsNoStopBack) {
  auto sandbox = Started();
  world_.Hold("agent.resize");
  auto update = world_.Begin(sandbox, sandbox->Update(Memory(1000)));
  world_.WaitFor("agent.resize");
  EXPECT_TRUE(world_.Await(sandbox, sandbox->Stop()).ok());
  world_.Release();
  (void)update.get();
}

TEST_F(ResizeTest, AVmmCannotTalkItsLimitUp) {
  auto sandbox = Started();
  ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
  const uint64_t wanted = sandbox->record().wanted_memory_bytes;
  const int told = world_.Count("agent.resize");
  world_.TakeMemory("a", uint64_t{1} << 40);
  world_.WaitFor("agent.resize", told + 1);
  EXPECT_TRUE(Update(sandbox, Memory(1000)).ok());
  EXPECT_EQ(sandbox->record().memory_bytes, wanted);
}

// What was asked for last counts, and not what the guest has done of it so far.
TEST_F(ResizeTest, BackBeforeTheGuestHasMoved) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
  ASSERT_TRUE(Update(sandbox, Memory(10)).ok());
  EXPECT_EQ(world_.Count("vm.resize"), 2);
  EXPECT_EQ(sandbox->record().memory_bytes, boot);
  EXPECT_FALSE(sandbox->record().resizing);
  ASSERT_TRUE(Update(sandbox, Memory(1000)).ok());
  EXPECT_EQ(world_.Count("vm.resize"), 3);
  EXPECT_TRUE(sandbox->record().resizing);
}

TEST_F(ResizeTest, AGuestThatWasNotToldIsToldAgain) {
  auto sandbox = Started();
  world_.Fail("agent.resize", absl::DeadlineExceededError("busy"));
  UpdatedResources more;
  more.resources.set_cpu_quota(300000);
  more.resources.set_cpu_period(100000);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Update(sandbox, more)));
  EXPECT_TRUE(sandbox->record().resizing);
  world_.Heal();
  const int told = world_.Count("agent.resize");
  world_.DropVmm("a");
  world_.WaitFor("agent.resize", told + 1);
}

TEST_F(ResizeTest, TheNextDaemonGoesOn) {
  auto sandbox = Started();
  world_.Fail("vm.resize", absl::UnavailableError("busy"));
  EXPECT_TRUE(absl::IsUnavailable(Update(sandbox, Memory(1000))));
  sandbox.reset();
  world_.Heal();
  world_.Restart();
  const int before = world_.Count("vm.resize");
  auto recover = [](SandboxManager* manager) -> Co<bool> {
    auto first = manager->Recover();
    const absl::Status status = co_await std::move(first);
    auto second = manager->RecoverGuests();
    co_await std::move(second);
    co_return status.ok();
  };
  ASSERT_TRUE(world_.Await(recover(&world_.manager())));
  world_.WaitFor("vm.resize", before + 1);
}

TEST_F(ResizeTest, AnOldGuestStaysAsItIs) {
  world_.NameFeatures({});
  auto sandbox = Started();
  EXPECT_TRUE(absl::IsFailedPrecondition(Update(sandbox, Memory(1000))));
  // Less than it has is only the host's to keep.
  EXPECT_TRUE(Update(sandbox, Memory(10)).ok());
  EXPECT_EQ(world_.Count("vm.resize"), 0);
}

}  // namespace
}  // namespace magnetar::daemon
