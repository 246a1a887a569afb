#include "src/daemon/storage/disk_image.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "magnetar/files.h"
#include "src/daemon/storage/testing/loop_device.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

class DiskImageTest : public ::testing::Test {
 protected:
  DiskImageTest() {
    char path[] = "/tmp/disk_image_test.XXXXXX";
    directory_ = ::mkdtemp(path);
    image_ = directory_ + "/image";
    EXPECT_TRUE(WriteFileAtomically(image_, std::string(4096, '\0')).ok());
    sys_block_ = directory_ + "/block";
    EXPECT_TRUE(MakeDirectories(sys_block_ + "/vda").ok());
    EXPECT_TRUE(MakeDirectories(sys_block_ + "/loop7").ok());
  }
  ~DiskImageTest() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  absl::StatusOr<UniqueFd> Open(bool read_only) {
    return OpenDiskImage(image_, read_only, sys_block_);
  }
  void BackLoop(const std::string& path) {
    EXPECT_TRUE(MakeDirectories(sys_block_ + "/loop7/loop").ok());
    EXPECT_TRUE(WriteFileAtomically(sys_block_ + "/loop7/loop/backing_file", path + "\n").ok());
  }

  std::string directory_, image_, sys_block_;
};

TEST_F(DiskImageTest, OneWriter) {
  auto first = Open(false);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = Open(false);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(image_));
  EXPECT_TRUE(absl::IsFailedPrecondition(Open(true).status()));
  // A VMM's duplicate keeps the claim.
  UniqueFd duplicate(::fcntl(first->get(), F_DUPFD_CLOEXEC, 0));
  first->reset();
  EXPECT_TRUE(absl::IsFailedPrecondition(Open(false).status()));
  duplicate.reset();
  EXPECT_TRUE(Open(false).ok());
}

TEST_F(DiskImageTest, ManyReaders) {
  const auto first = Open(true);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(Open(true).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Open(false).status()));
  EXPECT_EQ(::fcntl(first->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
}

TEST_F(DiskImageTest, ImageOfALoopDevice) {
  BackLoop(image_);
  const auto writable = Open(false);
  EXPECT_TRUE(absl::IsFailedPrecondition(writable.status())) << writable.status();
  EXPECT_THAT(std::string(writable.status().message()), HasSubstr("/dev/loop7"));
  EXPECT_TRUE(Open(true).ok());
}

TEST_F(DiskImageTest, ImageOfALoopDeviceByAnotherName) {
  const std::string link = directory_ + "/link";
  ASSERT_EQ(::link(image_.c_str(), link.c_str()), 0);
  BackLoop(link);
  EXPECT_TRUE(absl::IsFailedPrecondition(Open(false).status()));
}

TEST_F(DiskImageTest, OtherLoopDevicesDoNotMatter) {
  BackLoop("/nowhere/else (deleted)");
  EXPECT_TRUE(Open(false).ok());
}

TEST_F(DiskImageTest, NotAnImage) {
  const auto missing = OpenDiskImage(directory_ + "/missing", false, sys_block_);
  EXPECT_TRUE(absl::IsFailedPrecondition(missing.status())) << missing.status();
  EXPECT_TRUE(absl::IsInvalidArgument(OpenDiskImage(directory_, false, sys_block_).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenDiskImage("/dev/null", true, sys_block_).status()));
  const std::string fifo = directory_ + "/fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(OpenDiskImage(fifo, false, sys_block_).status()));
}

TEST_F(DiskImageTest, RealLoopDevice) {
  std::string path;
  UniqueFd loop = AttachLoop(image_, &path);
  if (!loop.ok()) GTEST_SKIP() << "needs root and loop devices";
  const auto image = OpenDiskImage(image_, false);
  EXPECT_TRUE(absl::IsFailedPrecondition(image.status())) << image.status();
  EXPECT_THAT(std::string(image.status().message()), HasSubstr(path));
  // The device itself may be given away, once.
  auto device = OpenDiskImage(path, false);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenDiskImage(path, false).status()));
  EXPECT_TRUE(OpenDiskImage(path, true).ok());
  device->reset();
  loop.reset();
}

TEST(DiskSerialTest, ShortAndStable) {
  EXPECT_EQ(DiskSerial("c1"), "mgr-08a27f07b54a6859");
  EXPECT_EQ(DiskSerial(std::string(64, 'f')).size(), 20u);
  EXPECT_NE(DiskSerial("c1"), DiskSerial("c2"));
}

}  // namespace
}  // namespace magnetar::daemon
