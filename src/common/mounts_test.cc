#include "magnetar/mounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

namespace magnetar {
namespace {

using ::testing::ElementsAre;

TEST(MountOptionsTest, AreTakenApart) {
  const MountOptions options =
      ParseMountOptions({"ro", "noatime", "nouuid", "loop", "size=64k", "defaults"});
  EXPECT_EQ(options.flags, static_cast<unsigned long>(MS_RDONLY | MS_NOATIME));
  EXPECT_THAT(options.data, ElementsAre("nouuid", "size=64k"));
  EXPECT_EQ(ParseMountOptions({"ro", "rw"}).flags, 0UL);
  EXPECT_EQ(ParseMountOptions({"rbind"}).flags, static_cast<unsigned long>(MS_BIND | MS_REC));
}

TEST(MountPointsTest, InOrderAndUnescaped) {
  const std::string mountinfo =
      "21 1 8:1 / / rw - ext4 /dev/vda rw\n"
      "22 21 0:5 / /run/x rw shared:1 - tmpfs tmpfs rw\n"
      "24 22 0:7 / /run/x/with\\040space rw - tmpfs tmpfs rw\n"
      "25 22 0:8 / /run/x/no\\9xoctal\\04 rw - tmpfs tmpfs rw\n"
      "26 22 0:9 / /cut-off\n"
      "broken line\n"
      "\n";
  EXPECT_THAT(MountPoints(mountinfo),
              ElementsAre("/", "/run/x", "/run/x/with space", "/run/x/no\\9xoctal\\04"));
}

TEST(MountInfoTest, WhatOfTheFileSystemIsWhere) {
  const std::vector<MountInfo> mounts =
      ParseMountInfo("31 22 0:9 /a\\040b /run/y rw shared:1 - tmpfs cache rw\n");
  ASSERT_EQ(mounts.size(), 1u);
  EXPECT_EQ(mounts[0].id, "31");
  EXPECT_EQ(mounts[0].root, "/a b");
  EXPECT_EQ(mounts[0].point, "/run/y");
  EXPECT_EQ(mounts[0].type, "tmpfs");
}

}  // namespace
}  // namespace magnetar
