#include "vmm/ninep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "magnetar/ports.h"

namespace magnetar::vmm {
namespace {

TEST(NinepTest, ComesBeforeTheVmmWithAStreamIntoTheGuest) {
  LaunchPlan plan;
  plan.processes.emplace_back().set_name("vmm");
  ASSERT_TRUE(PlanNinep("/bin/true", "/run/s/shared", plan).ok());
  ASSERT_EQ(plan.processes.size(), 2u);
  const supervisor::v1::Process& server = plan.processes[0];
  EXPECT_EQ(server.name(), "vmm-9p");
  EXPECT_FALSE(server.vmm());
  EXPECT_THAT(server.argv(), testing::Contains("--directory=/run/s/shared"));
  ASSERT_EQ(plan.guest_streams.size(), 1u);
  EXPECT_EQ(plan.guest_streams[0].port(), kFileSharePort);
  EXPECT_NE(plan.guest_streams[0].fd(), server.descriptors(0).source());
  // The plan keeps both open.
  EXPECT_EQ(plan.descriptors.size(), 2u);
}

TEST(NinepTest, NamesTheProgramThatIsMissing) {
  LaunchPlan plan;
  const absl::Status status = PlanNinep("/nonexistent/vmm-9p", "/run/s/shared", plan);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("vmm-9p /nonexistent/vmm-9p: No such"));
}

}  // namespace
}  // namespace magnetar::vmm
