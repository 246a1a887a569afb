#include "src/daemon/cgroup/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>

#include "src/daemon/cgroup/fake_tree.h"

namespace magnetar::daemon {
namespace {

using MetricsTest = FakeTree;

const Hierarchy kUnified = {"/c", true, NeededControllers()};

TEST_F(MetricsTest, V2) {
  Put("c/cpu.stat",
      "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_throttled 4\nnew_key 1\n");
  Put("c/cpu.pressure",
      "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.50 avg60=0 avg300=0 "
      "total=5\n");
  Put("c/memory.stat", "anon 4096\nfile 8192\npgmajfault 3\ninactive_file 12\n");
  Put("c/memory.events", "low 0\nhigh 0\nmax 2\noom 1\noom_kill 1\n");
  Put("c/memory.current", "12345\n");
  Put("c/memory.max", "max\n");
  Put("c/pids.current", "7\n");
  Put("c/pids.max", "64\n");
  Put("c/io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n\n254:16 rbytes=5\n");
  io::containerd::cgroups::v2::Metrics m;
  ReadMetricsV2(kUnified, Path("c"), m);
  EXPECT_EQ(m.cpu().usage_usec(), 3000u);
  EXPECT_EQ(m.cpu().system_usec(), 1000u);
  EXPECT_EQ(m.cpu().nr_throttled(), 4u);
  EXPECT_EQ(m.cpu().psi().some().avg10(), 1.5);
  EXPECT_EQ(m.cpu().psi().some().total(), 77u);
  EXPECT_EQ(m.cpu().psi().full().total(), 5u);
  EXPECT_EQ(m.memory().anon(), 4096u);
  EXPECT_EQ(m.memory().pgmajfault(), 3u);
  EXPECT_EQ(m.memory().usage(), 12345u);
  EXPECT_EQ(m.memory().usage_limit(), UINT64_MAX);
  EXPECT_EQ(m.memory_events().oom_kill(), 1u);
  EXPECT_EQ(m.pids().current(), 7u);
  EXPECT_EQ(m.pids().limit(), 64u);
  ASSERT_EQ(m.io().usage_size(), 2);
  EXPECT_EQ(m.io().usage(0).wios(), 4u);
  EXPECT_EQ(m.io().usage(1).major(), 254u);
  EXPECT_EQ(m.io().usage(1).minor(), 16u);
  EXPECT_EQ(m.io().usage(1).rbytes(), 5u);
}

TEST_F(MetricsTest, V1InTheFormOfV2) {
  Put("cpu/cpuacct.usage", "5000000\n");
  Put("cpu/cpuacct.stat", "user 100\nsystem 50\n");
  Put("cpu/cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 9000\n");
  Put("memory/memory.stat", "rss 1\ntotal_rss 4096\ntotal_cache 8192\ntotal_swap 16\n");
  Put("memory/memory.usage_in_bytes", "20480\n");
  Put("memory/memory.limit_in_bytes", "9223372036854771712\n");
  Put("memory/memory.max_usage_in_bytes", "40960\n");
  Put("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
  Put("pids/pids.current", "3\n");
  Put("pids/pids.max", "max\n");
  Put("blkio/blkio.throttle.io_service_bytes_recursive",
      "8:0 Read 100\n8:0 Write 200\n8:0 Total 300\nTotal 300\n");
  Put("blkio/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n");
  io::containerd::cgroups::v2::Metrics m;
  ReadMetricsV1({Path("cpu"), false, {"cpu", "cpuacct"}}, Path("cpu"), m);
  ReadMetricsV1({Path("memory"), false, {"memory"}}, Path("memory"), m);
  ReadMetricsV1({Path("pids"), false, {"pids"}}, Path("pids"), m);
  ReadMetricsV1({Path("blkio"), false, {"blkio"}}, Path("blkio"), m);
  EXPECT_EQ(m.cpu().usage_usec(), 5000u);
  EXPECT_EQ(m.cpu().user_usec(),
            uint64_t{100} * 1000000 / static_cast<uint64_t>(::sysconf(_SC_CLK_TCK)));
  EXPECT_EQ(m.cpu().throttled_usec(), 9u);
  EXPECT_EQ(m.memory().anon(), 4096u);
  EXPECT_EQ(m.memory().file(), 8192u);
  EXPECT_EQ(m.memory().swap_usage(), 16u);
  EXPECT_EQ(m.memory().usage(), 20480u);
  EXPECT_EQ(m.memory().usage_limit(), UINT64_MAX);
  EXPECT_EQ(m.memory().max_usage(), 40960u);
  EXPECT_EQ(m.memory_events().oom_kill(), 2u);
  EXPECT_EQ(m.pids().limit(), UINT64_MAX);
  ASSERT_EQ(m.io().usage_size(), 1);
  EXPECT_EQ(m.io().usage(0).rbytes(), 100u);
  EXPECT_EQ(m.io().usage(0).wbytes(), 200u);
  EXPECT_EQ(m.io().usage(0).rios(), 1u);
  EXPECT_EQ(m.io().usage(0).wios(), 2u);
}

TEST_F(MetricsTest, AbsentFilesAreZero) {
  io::containerd::cgroups::v2::Metrics m;
  ReadMetricsV2(kUnified, Path("none"), m);
  EXPECT_EQ(m.memory().usage(), 0u);
  EXPECT_EQ(m.io().usage_size(), 0);
}

}  // namespace
}  // namespace magnetar::daemon
