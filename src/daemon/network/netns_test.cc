#include "src/daemon/network/netns.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "src/daemon/network/pod_network.h"

namespace magnetar::daemon {
namespace {

class NetnsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/netns_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
  }
  void TearDown() override {
    ::unlink(Path("file").c_str());
    ::rmdir(directory_.c_str());
  }
  std::string Path(const std::string& name) { return directory_ + "/" + name; }
  void WriteTo(const std::string& name, const std::string& text) {
    UniqueFd fd(::open(Path(name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  std::string directory_;
};

TEST_F(NetnsTest, AbsentIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(OpenNetns(Path("none")).status()));
}

TEST_F(NetnsTest, WhatIsLeftOfAnUnmountedOneIsNotFound) {
  WriteTo("file", "");
  EXPECT_TRUE(absl::IsNotFound(OpenNetns(Path("file")).status()));
}

TEST_F(NetnsTest, OthersAreInvalid) {
  WriteTo("file", "x");
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns(Path("file")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns(directory_).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns("").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns("run/netns/x").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns("/proc/self/ns/mnt").status()));
}

TEST_F(NetnsTest, AFifoDoesNotHang) {
  ASSERT_EQ(::mkfifo(Path("file").c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns(Path("file")).status()));
}

TEST_F(NetnsTest, TheHostsOwnIsInvalid) {
  EXPECT_TRUE(absl::IsInvalidArgument(OpenNetns("/proc/self/ns/net").status()));
}

TEST_F(NetnsTest, ManagerTellsWhatItCannotUse) {
  auto manager = CreateNetworkManager();
  EXPECT_TRUE(absl::IsInvalidArgument(manager->Attach(Path("none"), 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(manager->Attach("/proc/self/ns/net", 0).status()));
  for (const std::string& path :
       {Path("none"), std::string(), std::string("/proc/self/ns/net"), std::string("/etc/passwd/x"),
        directory_, "/" + std::string(5000, 'x')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(manager->Attach(path, 0).status())) << path;
    EXPECT_TRUE(manager->Detach(path, 0).ok()) << path;
  }
}

}  // namespace
}  // namespace magnetar::daemon
