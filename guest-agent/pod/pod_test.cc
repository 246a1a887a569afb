#include "guest-agent/pod/pod.h"

#include <gtest/gtest.h>

#include "guest-agent/testing/temp_dir.h"

namespace magnetar::guest {
namespace {

TEST(Sysctl, WritesBelowProcSys) {
  const testing::TempDir dir;
  dir.Write("net/ipv4/ip_forward", "0");
  dir.Write("net/ipv4/conf/eth0.1/forwarding", "0");
  EXPECT_EQ(WriteSysctl(dir.path(), "net.ipv4.ip_forward", "1"), absl::OkStatus());
  EXPECT_EQ(dir.Read("net/ipv4/ip_forward"), "1");
  EXPECT_EQ(WriteSysctl(dir.path(), "net/ipv4/conf/eth0.1/forwarding", "1"), absl::OkStatus());
  EXPECT_EQ(dir.Read("net/ipv4/conf/eth0.1/forwarding"), "1");
}

TEST(Sysctl, RefusesStrangeNames) {
  const testing::TempDir dir;
  dir.Write("a", "");
  for (const char* name : {"", "a", ".", "..", "net..x", "net/../a", "/etc/passwd", "net.ipv4 x",
                           "net.a\nb", "../a"}) {
    EXPECT_EQ(WriteSysctl(dir.path(), name, "1").code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
  EXPECT_EQ(WriteSysctl(dir.path(), "net.none", "1").code(), absl::StatusCode::kNotFound);
}

TEST(Memory, IsReadFromMeminfo) {
  const testing::TempDir dir;
  dir.Write("meminfo", "MemTotal:         204800 kB\nMemFree:  1 kB\n");
  EXPECT_EQ(*MemoryTotal(dir / "meminfo"), 204800U * 1024);
  EXPECT_EQ(HugePagesTotal(dir / "meminfo"), 0U);
  dir.Write("huge", "MemTotal:         204800 kB\nHugetlb:         4096 kB\n");
  EXPECT_EQ(HugePagesTotal(dir / "huge"), 4096U * 1024);
  dir.Write("bad", "nothing\n");
  EXPECT_FALSE(MemoryTotal(dir / "bad").ok());
}

TEST(Pod, RefusesAnotherSandboxAndStrangeRequests) {
  const testing::TempDir dir;
  PodPaths paths;
  paths.pod = dir / "pod";
  Pod pod(paths, [](const agent::v1::Network&) { return absl::OkStatus(); });
  agent::v1::SetupSandboxRequest request;
  request.set_sandbox_id("../x");
  request.set_vmm_pid(1);
  EXPECT_EQ(pod.Setup(request).code(), absl::StatusCode::kInvalidArgument);
  request.set_sandbox_id("x");
  request.set_vmm_pid(0);
  EXPECT_EQ(pod.Setup(request).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pod.vmm_pid(), 0U);
  EXPECT_EQ(pod.sandbox_id(), "");
}

TEST(Pod, WritesAllFilesThatContainersGetBound) {
  const testing::TempDir dir;
  // Here the set-up ends: what follows needs a guest.
  dir.Write("pod/shm", "");
  PodPaths paths;
  paths.pod = dir / "pod";
  Pod pod(paths, [](const agent::v1::Network&) { return absl::OkStatus(); });
  agent::v1::SetupSandboxRequest request;
  request.set_sandbox_id("x");
  request.set_vmm_pid(1);
  request.set_hosts("127.0.0.1 localhost\n");
  EXPECT_FALSE(pod.Setup(request).ok());
  EXPECT_EQ(dir.Read("pod/hosts"), "127.0.0.1 localhost\n");
  EXPECT_EQ(dir.Read("pod/hostname"), "");
  EXPECT_EQ(dir.Read("pod/resolv.conf"), "");
}

}  // namespace
}  // namespace magnetar::guest
