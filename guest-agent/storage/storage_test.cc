#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include "guest-agent/storage/container_mounts.h"
#include "guest-agent/storage/disks.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/testing/temp_dir.h"

namespace magnetar::guest {
namespace {

TEST(MountOptions, AreTakenApart) {
  const MountFlags flags = ParseMountOptions({"ro", "noatime", "nouuid", "loop", "size=64k"});
  EXPECT_EQ(flags.flags, static_cast<unsigned long>(MS_RDONLY | MS_NOATIME));
  EXPECT_EQ(flags.data, "nouuid,size=64k");
  EXPECT_EQ(ParseMountOptions({"ro", "rw"}).flags, 0UL);
  EXPECT_EQ(ParseMountOptions({"rbind"}).flags, static_cast<unsigned long>(MS_BIND | MS_REC));
}

TEST(Disks, AreFoundBySerial) {
  const testing::TempDir dir;
  dir.Write("sys/vda/serial", "root\n");
  dir.Write("sys/vdb/serial", "");
  dir.Write("sys/sda/device/vpd_pg80", std::string("\x00\x80\x00\x08 my-disk", 12));
  for (const char* name : {"vda", "vdb", "sda"}) dir.Write(std::string("dev/") + name, "");
  EXPECT_EQ(FindDisk("root", dir / "sys", dir / "dev"), dir / "dev/vda");
  EXPECT_EQ(FindDisk("my-disk", dir / "sys", dir / "dev"), dir / "dev/sda");
  EXPECT_EQ(FindDisk("none", dir / "sys", dir / "dev"), std::nullopt);
  dir.Write("sys/vdc/serial", "early\n");
  // Its node is not there yet.
  EXPECT_EQ(FindDisk("early", dir / "sys", dir / "dev"), std::nullopt);
}

TEST(Disks, VpdPagesAreReadCarefully) {
  EXPECT_EQ(SerialOfVpdPage80(std::string("\x00\x80\x00\x03"
                                          "abcdef",
                                          10)),
            "abc");
  EXPECT_EQ(SerialOfVpdPage80(std::string("\x00\x80\xff\xff"
                                          "ab",
                                          6)),
            "ab");
  EXPECT_EQ(SerialOfVpdPage80(std::string("\x00\x83\x00\x02"
                                          "ab",
                                          6)),
            "");
  EXPECT_EQ(SerialOfVpdPage80("x"), "");
  EXPECT_EQ(SerialOfVpdPage80(""), "");
}

TEST(Paths, StayBelow) {
  EXPECT_TRUE(CheckBelow("/a/b/c", "/a/b").ok());
  for (const char* path : {"/a/b", "/a/bc", "/a/b/../c", "a/b/c", "", "/a/b/.."}) {
    EXPECT_FALSE(CheckBelow(path, "/a/b").ok()) << path;
  }
}

TEST(ContainerMounts, RefusesTargetsElsewhere) {
  const testing::TempDir dir;
  GuestPaths paths;
  paths.containers = dir / "containers";
  paths.shared = dir / "shared";
  dir.Write("shared/c/rootfs/x", "");
  KernelContainerMounts mounts(paths);
  agent::v1::Storage storage;
  storage.set_kind(agent::v1::Storage::TMPFS);
  storage.set_target("/etc");
  EXPECT_EQ(mounts.MountAll("c", {storage}).code(), absl::StatusCode::kInvalidArgument);
  storage.set_target(dir / "containers/other/rootfs");
  EXPECT_EQ(mounts.MountAll("c", {storage}).code(), absl::StatusCode::kInvalidArgument);
  storage.Clear();
  storage.set_kind(agent::v1::Storage::SHARED);
  storage.set_source("../secret");
  EXPECT_EQ(mounts.MountAll("c", {storage}).code(), absl::StatusCode::kInvalidArgument);
  storage.set_source("c/rootfs");
  EXPECT_EQ(mounts.MountAll("c", {storage}), absl::OkStatus());
  storage.set_source("c/missing");
  EXPECT_EQ(mounts.MountAll("c", {storage}).code(), absl::StatusCode::kNotFound);
  storage.Clear();
  EXPECT_EQ(mounts.MountAll("c", {storage}).code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace magnetar::guest
