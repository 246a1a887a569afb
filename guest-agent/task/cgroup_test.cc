#include "guest-agent/task/cgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "guest-agent/testing/temp_dir.h"

namespace magnetar::guest {
namespace {

TEST(Cgroup, ReadsTheCounters) {
  const testing::TempDir dir;
  dir.Write("pids.current", "7\n");
  dir.Write("pids.max", "max\n");
  dir.Write("cpu.stat", "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_throttled 2\n");
  dir.Write("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n");
  dir.Write("memory.stat", "anon 11\nfile 22\ninactive_file 5\nworkingset_refault_anon 3\nnew 1\n");
  dir.Write("memory.current", "4096\n");
  dir.Write("memory.max", "8192\n");
  dir.Write("memory.events", "low 0\noom 2\noom_kill 1\n");
  dir.Write("io.stat", "8:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:0\n");
  const auto metrics = ReadCgroupMetrics(dir.path());
  ASSERT_TRUE(metrics.ok());
  EXPECT_EQ(metrics->pids().current(), 7U);
  EXPECT_EQ(metrics->pids().limit(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(metrics->cpu().usage_usec(), 100U);
  EXPECT_EQ(metrics->cpu().nr_throttled(), 2U);
  EXPECT_EQ(metrics->cpu().psi().some().total(), 77U);
  EXPECT_DOUBLE_EQ(metrics->cpu().psi().some().avg10(), 1.5);
  EXPECT_EQ(metrics->memory().anon(), 11U);
  EXPECT_EQ(metrics->memory().inactive_file(), 5U);
  EXPECT_EQ(metrics->memory().workingset_refault_anon(), 3U);
  EXPECT_EQ(metrics->memory().usage(), 4096U);
  EXPECT_EQ(metrics->memory().usage_limit(), 8192U);
  EXPECT_FALSE(metrics->memory().has_psi());
  EXPECT_EQ(metrics->memory_events().oom_kill(), 1U);
  ASSERT_EQ(metrics->io().usage_size(), 2);
  EXPECT_EQ(metrics->io().usage(0).major(), 8U);
  EXPECT_EQ(metrics->io().usage(0).minor(), 16U);
  EXPECT_EQ(metrics->io().usage(0).wbytes(), 20U);
}

TEST(Cgroup, SaysThatItIsNotThere) {
  EXPECT_EQ(ReadCgroupMetrics("/no/such/cgroup").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(KillCgroup("/no/such/cgroup"), absl::OkStatus());
  EXPECT_EQ(SignalCgroup("/no/such/cgroup", 15), absl::OkStatus());
  EXPECT_EQ(ReadCgroupCounter("/no/such/file", "oom_kill"), 0U);
}

TEST(Cgroup, FindsProcessesBelow) {
  const testing::TempDir dir;
  dir.Write("cgroup.procs", "");
  dir.Write("a/cgroup.procs", "12\n13\n");
  dir.Write("a/b/cgroup.procs", "14\n0\nx\n");
  const auto pids = CgroupPids(dir.path());
  ASSERT_TRUE(pids.ok());
  EXPECT_THAT(*pids, ::testing::UnorderedElementsAre(12, 13, 14));
}

}  // namespace
}  // namespace magnetar::guest
