#include "guest-agent/pod/pod.h"

#include <gtest/gtest.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
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
  EXPECT_EQ(WriteSysctl(dir.path(), "net.none", "1").code(), absl::StatusCode::kInvalidArgument);
}

TEST(Memory, IsReadFromMeminfo) {
  const testing::TempDir dir;
  dir.Write("meminfo", "MemTotal:         204800 kB\nMemFree:  1 kB\n");
  EXPECT_EQ(*ReadMeminfo(dir / "meminfo", "MemTotal"), 204800U * 1024);
  EXPECT_EQ(*ReadMeminfo(dir / "meminfo", "MemFree"), 1024U);
  EXPECT_FALSE(ReadMeminfo(dir / "meminfo", "Mem").ok());
  dir.Write("bad", "nothing\n");
  EXPECT_FALSE(ReadMeminfo(dir / "bad", "MemTotal").ok());
}

TEST(PodMemory, IsWhatIsThereLessWhatIsKept) {
  constexpr uint64_t kMiB = 1 << 20;
  const testing::TempDir dir;
  const auto limit = [&] {
    uint64_t bytes = 0;
    EXPECT_TRUE(absl::SimpleAtoi(dir.Read("memory.max"), &bytes));
    dir.Write("memory.max", "");
    return bytes / kMiB;
  };
  dir.Write("memory.max", "");
  dir.Write("memory.stat", absl::StrCat("anon ", 20 * kMiB, "\nshmem ", 30 * kMiB, "\nfile 1\n"));
  PodMemory memory(dir.path());
  EXPECT_TRUE(absl::IsFailedPrecondition(memory.SetAdded(kMiB)));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory.Start(40 * kMiB, 32 * kMiB)));
  ASSERT_TRUE(memory.Start(332 * kMiB, 32 * kMiB).ok());
  EXPECT_EQ(limit(), 300u);
  ASSERT_TRUE(memory.SetAdded(500 * kMiB).ok());
  EXPECT_EQ(limit(), 800u);
  ASSERT_TRUE(memory.SetHugePages(100 * kMiB).ok());
  EXPECT_EQ(limit(), 700u);
  // A set-up that is repeated takes nothing away.
  ASSERT_TRUE(memory.Start(832 * kMiB, 32 * kMiB).ok());
  EXPECT_EQ(limit(), 700u);
  ASSERT_TRUE(memory.SetAdded(0).ok());
  EXPECT_EQ(limit(), 200u);
  EXPECT_TRUE(memory.fits());
  // Nobody is killed for what was given back.
  ASSERT_TRUE(memory.SetHugePages(300 * kMiB).ok());
  EXPECT_EQ(limit(), 66u);
  EXPECT_FALSE(memory.fits());
}

TEST(Pod, RefusesAnotherSandboxAndStrangeRequests) {
  const testing::TempDir dir;
  PodPaths paths;
  paths.pod = dir / "pod";
  ShareStream stream;
  Pod pod(
      paths, [](const agent::v1::Network&) { return absl::OkStatus(); }, &stream);
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
  ShareStream stream;
  Pod pod(
      paths, [](const agent::v1::Network&) { return absl::OkStatus(); }, &stream);
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
