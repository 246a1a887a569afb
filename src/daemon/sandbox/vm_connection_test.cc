#include <gtest/gtest.h>

#include "src/daemon/sandbox/testing/fake_world.h"

namespace magnetar::daemon {
namespace {

class VmConnectionTest : public testing::Test {
 protected:
  VmConnectionTest() {
    EXPECT_TRUE(world_.Create("a").ok());
    sandbox_ = world_.Get("a");
    EXPECT_TRUE(world_.Await(sandbox_, sandbox_->Start()).ok());
    // Being served: it will not attach for another reason.
    world_.WaitFor("agent.list");
  }
  ~VmConnectionTest() override { sandbox_.reset(); }

  FakeWorld world_;
  std::shared_ptr<Sandbox> sandbox_;
};

TEST_F(VmConnectionTest, ALostOneIsMadeAgain) {
  const int before = world_.Count("driver.attach");
  world_.Fail("driver.attach", absl::UnavailableError("not yet"));
  world_.DropVmm("a");
  world_.WaitFor("driver.attach", before + 1);
  world_.Heal();
  world_.WaitFor("driver.attach", before + 2);
  // And again.
  world_.WaitFor("vm.events", before + 1);
  world_.DropVmm("a");
  world_.WaitFor("driver.attach", before + 3);
  EXPECT_EQ(sandbox_->snapshot()->state, SandboxState::kReady);
  EXPECT_TRUE(world_.Await(sandbox_, sandbox_->Shutdown()).ok());
  EXPECT_TRUE(world_.Residues().empty());
}

TEST_F(VmConnectionTest, OneThatDiesIsNotConnectedTo) {
  const int before = world_.Count("driver.attach");
  world_.KillVm("a");
  world_.DropVmm("a");
  world_.WaitFor("cgroup.remove");
  EXPECT_TRUE(world_.Await(sandbox_, sandbox_->Shutdown()).ok());
  EXPECT_EQ(world_.Count("driver.attach"), before);
}

}  // namespace
}  // namespace magnetar::daemon
