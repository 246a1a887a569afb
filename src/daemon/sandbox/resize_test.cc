// A running sandbox that is made larger and smaller.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

constexpr uint64_t kMebibyte = 1 << 20;

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

  FakeWorld world_;
};

TEST_F(ResizeTest, GrowsAndShrinks) {
  auto sandbox = Started();
  const uint64_t boot = sandbox->record().memory_bytes;
  const uint64_t overhead = world_.env().config.vm.overhead_mib;
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
  EXPECT_EQ(sandbox->record().memory_bytes, (1000 + overhead) * kMebibyte);

  ASSERT_TRUE(Update(sandbox, Memory(10)).ok());
  EXPECT_EQ(sandbox->record().wanted_memory_bytes, boot);
  EXPECT_EQ(sandbox->record().vcpus, 3u);
  EXPECT_EQ(world_.leaving_bytes.load(), (1000 + overhead) * kMebibyte - boot);
  // As long as the guest has it, the host leaves it.
  EXPECT_GE(world_.updated_memory_bytes.load(), (1000 + overhead) * kMebibyte);
  const int limited = world_.Count("cgroup.update");
  world_.TakeMemory("a");
  world_.WaitFor("cgroup.update", limited + 1);
  EXPECT_LT(world_.updated_memory_bytes.load(), (1000 + overhead) * kMebibyte);
}

TEST_F(ResizeTest, MoreThanItCanHaveIsRefusedAndChangesNothing) {
  auto sandbox = Started();
  const absl::Status status = Update(sandbox, Memory(uint64_t{1} << 40));
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_FALSE(sandbox->record().pod_updated);
  EXPECT_EQ(world_.Count("vm.resize") + world_.Count("cgroup.update"), 0);
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
