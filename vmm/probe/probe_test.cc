#include "vmm/probe/probe.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "magnetar/files.h"
#include "vmm/probe/kvm.h"

namespace magnetar::vmm {
namespace {

TEST(Probe, ReadsQemuVersions) {
  auto version = ParseQemuVersion(
      "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003\n");
  ASSERT_TRUE(version.ok());
  EXPECT_EQ(*version, "7.2.22");
  EXPECT_EQ(ParseQemuVersion("QEMU emulator version 11.0.0").value(), "11.0.0");
  for (const char* bad : {"", "QEMU emulator version ", "QEMU emulator version x", "qemu 7.2"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseQemuVersion(bad).status())) << bad;
  }
}

TEST(Probe, WhatIsNotKvmIsNoKvm) {
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckKvm("/dev/null")));
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckKvm("/nonexistent")));
}

TEST(Probe, ADeviceOfRootsGroupIsNotForVmms) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  char name[] = "/tmp/probe.XXXXXX";
  const std::string directory = ::mkdtemp(name);
  const std::string device = directory + "/kvm";
  ASSERT_TRUE(WriteFileAtomically(device, "", 0660).ok());
  ASSERT_EQ(::chmod(device.c_str(), 0660), 0);  // whatever the umask has left
  ASSERT_EQ(::chmod(directory.c_str(), 0755), 0);
  const std::string why = std::string(CheckKvm(device).message());
  EXPECT_NE(why.find("open it as a VMM's user: Permission denied"), std::string::npos) << why;
  // With a group of its own it opens, and is no KVM.
  ASSERT_EQ(::chown(device.c_str(), 0, 107), 0);
  const std::string other = std::string(CheckKvm(device).message());
  EXPECT_NE(other.find("speak KVM"), std::string::npos) << other;
  EXPECT_TRUE(RemoveTree(directory).ok());
}

// Whatever the machine has: an answer, in time.
TEST(Probe, KvmIsDecidedInTime) {
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = CheckKvm("/dev/kvm", std::chrono::milliseconds(300));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  std::printf("KVM: %s\n", status.ToString().c_str());
}

TEST(Probe, NothingInstalled) {
  ProbeOptions options;
  options.qemu = {"/nonexistent/qemu"};
  options.virtiofsd = {"/nonexistent/virtiofsd"};
  options.kvm = options.vhost_net = options.vhost_vsock = "/nonexistent/device";
  const Host host = ProbeHost(options);
  EXPECT_TRUE(absl::IsNotFound(host.qemu));
  EXPECT_FALSE(host.kvm.ok());
  EXPECT_FALSE(host.vhost_vsock);
  EXPECT_EQ(host.virtiofsd_path, "");
}

TEST(Probe, AnotherProgramIsNoQemu) {
  ProbeOptions options;
  options.qemu = {"/bin/true"};
  options.kvm = "/nonexistent/device";
  EXPECT_TRUE(absl::IsInvalidArgument(ProbeHost(options).qemu));
}

}  // namespace
}  // namespace magnetar::vmm
