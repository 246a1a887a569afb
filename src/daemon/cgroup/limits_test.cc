#include "src/daemon/cgroup/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const SandboxLimits kLimits = {.memory_bytes = 1 << 20,
                               .cpu_shares = 512,
                               .cpu_quota_us = 50000,
                               .cpu_period_us = 100000,
                               .pids = 64};

const Hierarchy kV2 = {"/c", true, NeededControllers()};

TEST(LimitWritesTest, V2) {
  EXPECT_THAT(LimitWrites(kV2, kLimits, false),
              ElementsAre(LimitWrite{"memory", "memory.max", "1048576"},
                          LimitWrite{"cpu", "cpu.weight", "20"},
                          LimitWrite{"cpu", "cpu.max", "50000 100000"},
                          LimitWrite{"pids", "pids.max", "64"}));
  EXPECT_THAT(LimitWrites(kV2, {}, false), IsEmpty());
  EXPECT_THAT(LimitWrites(kV2, {}, true), ElementsAre(LimitWrite{"memory", "memory.max", "max"},
                                                      LimitWrite{"cpu", "cpu.weight", "100"},
                                                      LimitWrite{"cpu", "cpu.max", "max 100000"},
                                                      LimitWrite{"pids", "pids.max", "max"}));
}

TEST(LimitWritesTest, V2WritesOnlyItsOwnControllersBesideV1) {
  EXPECT_THAT(LimitWrites({"/c", true, {"pids"}}, kLimits, false),
              ElementsAre(LimitWrite{"pids", "pids.max", "64"}));
  EXPECT_THAT(LimitWrites({"/c", true, {}}, kLimits, true), IsEmpty());
}

TEST(LimitWritesTest, V1WritesOnlyItsOwnControllers) {
  EXPECT_THAT(LimitWrites({"/c/memory", false, {"memory"}}, kLimits, false),
              ElementsAre(LimitWrite{"memory", "memory.limit_in_bytes", "1048576"}));
  EXPECT_THAT(LimitWrites({"/c/cpu", false, {"cpu", "cpuacct"}}, kLimits, false),
              ElementsAre(LimitWrite{"cpu", "cpu.shares", "512"},
                          LimitWrite{"cpu", "cpu.cfs_period_us", "100000"},
                          LimitWrite{"cpu", "cpu.cfs_quota_us", "50000"}));
  EXPECT_THAT(LimitWrites({"/c/pids", false, {"pids"}}, kLimits, false),
              ElementsAre(LimitWrite{"pids", "pids.max", "64"}));
  EXPECT_THAT(LimitWrites({"/c/devices", false, {"devices"}}, kLimits, true), IsEmpty());
  EXPECT_THAT(LimitWrites({"/c/memory", false, {"memory"}}, {}, true),
              ElementsAre(LimitWrite{"memory", "memory.limit_in_bytes", "-1"}));
}

TEST(WeightOfSharesTest, CoversTheRange) {
  EXPECT_EQ(WeightOfShares(0), 1u);
  EXPECT_EQ(WeightOfShares(2), 1u);
  EXPECT_EQ(WeightOfShares(1024), 39u);
  EXPECT_EQ(WeightOfShares(262144), 10000u);
  EXPECT_EQ(WeightOfShares(UINT64_MAX), 10000u);
}

}  // namespace
}  // namespace magnetar::daemon
