#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/storage/block_devices.h"
#include "guest-agent/storage/container_mounts.h"
#include "guest-agent/storage/disks.h"
#include "guest-agent/storage/huge_pages.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/testing/temp_dir.h"
#include "src/common/testing/mount_namespace.h"

namespace magnetar::guest {
namespace {

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

agent::v1::PreparedContainer With(const agent::v1::Storage& storage) {
  agent::v1::PreparedContainer prepared;
  *prepared.add_storages() = storage;
  return prepared;
}

TEST(BlockDevices, NumbersAndRulesGoIntoTheSpec) {
  agent::v1::PreparedContainer prepared;
  prepared.set_spec(R"({"linux":{"devices":[{"path":"/dev/null","major":1,"minor":3},
      {"path":"/dev/xvda","type":"b","major":0,"minor":0,"gid":6}],
      "resources":{"devices":[{"allow":false,"access":"rwm"}]}}})");
  const auto nothing = [](const std::string&) { return absl::NotFoundError("not asked for"); };
  EXPECT_EQ(*SpecWithDisks(prepared, nothing), prepared.spec());
  agent::v1::Storage& storage = *prepared.add_storages();
  storage.set_kind(agent::v1::Storage::BLOCK_DEVICE);
  storage.set_serial("s");
  storage.set_device_index(1);
  storage.set_device_access("r");
  const auto find = [](const std::string& serial) -> absl::StatusOr<dev_t> {
    return serial == "s" ? ::makedev(8, 32) : 0;
  };
  const auto spec = SpecWithDisks(prepared, find);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(nlohmann::json::parse(*spec), nlohmann::json::parse(R"({"linux":{"devices":[
      {"path":"/dev/null","major":1,"minor":3},
      {"path":"/dev/xvda","type":"b","major":8,"minor":32,"gid":6}],
      "resources":{"devices":[{"allow":false,"access":"rwm"},
      {"allow":true,"type":"b","major":8,"minor":32,"access":"r"}]}}})"));

  const auto failed = SpecWithDisks(prepared, nothing);
  EXPECT_EQ(failed.status().message(), "linux.devices[1]: not asked for");
  storage.set_device_index(2);
  EXPECT_TRUE(absl::IsInvalidArgument(SpecWithDisks(prepared, find).status()));
  for (const char* odd : {"", "[]", "{}", R"({"linux":{"devices":[0,1,2]}})",
                          R"({"linux":{"devices":[{},{},{}],"resources":[]}})"}) {
    prepared.set_spec(odd);
    EXPECT_TRUE(absl::IsInvalidArgument(SpecWithDisks(prepared, find).status())) << odd;
  }
  prepared.set_spec(R"({"linux":{"devices":[{},{},{}]}})");
  EXPECT_TRUE(SpecWithDisks(prepared, find).ok()) << "no resources before";
}

class HugePagesTest : public ::testing::Test {
 protected:
  HugePagesTest() {
    dir_.Write("pools/hugepages-2048kB/nr_hugepages", "0\n");
    dir_.Write("pod/memory.max", absl::StrCat(200 << 20, "\n"));
    dir_.Write("pod/memory.stat", absl::StrCat("anon ", 50 << 20, "\nshmem ", 30 << 20, "\n"));
    EXPECT_TRUE(memory_.Start(232 << 20, 32 << 20).ok());
  }
  absl::Status Reserve(const std::string& id, uint64_t page_size, uint64_t bytes) {
    agent::v1::PreparedContainer prepared;
    auto* pages = prepared.add_huge_pages();
    pages->set_page_size(page_size);
    pages->set_bytes(bytes);
    pages->set_field("mounts[3] /pages");
    return pools_.Reserve(id, prepared.huge_pages());
  }
  // Written in place, as the kernel's files are: what was longer before keeps its end.
  std::string Number(const std::string& file) {
    return std::string(absl::StripAsciiWhitespace(dir_.Read(file)));
  }
  std::string Pool() { return Number("pools/hugepages-2048kB/nr_hugepages"); }
  std::string Memory() { return Number("pod/memory.max"); }

  const testing::TempDir dir_;
  PodMemory memory_{dir_ / "pod"};
  HugePagePools pools_{dir_ / "pools", dir_ / "pod", &memory_};
};

TEST_F(HugePagesTest, AreTheSumOfWhatContainersWerePromised) {
  EXPECT_EQ(Reserve("c1", 2 << 20, 5 << 20), absl::OkStatus());
  EXPECT_EQ(Pool(), "3");
  EXPECT_EQ(Memory(), absl::StrCat((200 << 20) - (6 << 20)));
  EXPECT_EQ(Reserve("c2", 2 << 20, 2 << 20), absl::OkStatus());
  EXPECT_EQ(Pool(), "4");
  EXPECT_EQ(Reserve("c1", 2 << 20, 2 << 20), absl::OkStatus()) << "again, and less";
  EXPECT_EQ(Pool(), "2");
  EXPECT_EQ(pools_.Release("c1"), absl::OkStatus());
  EXPECT_EQ(pools_.Release("c1"), absl::OkStatus());
  EXPECT_EQ(pools_.Release("c2"), absl::OkStatus());
  EXPECT_EQ(Pool(), "0");
  EXPECT_EQ(Memory(), absl::StrCat(200 << 20));
}

TEST_F(HugePagesTest, WhatDoesNotFitTakesNothing) {
  EXPECT_EQ(Reserve("c1", 2 << 20, 100 << 20), absl::OkStatus());
  const absl::Status status = Reserve("c2", 2 << 20, 8 << 20);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(status.message(),
            "mounts[3] /pages: 8192 KiB in pages of 2048 KiB: the VM has 100 MiB for its "
            "containers, of which 80 MiB are in use");
  EXPECT_EQ(Pool(), "50");
  const absl::Status odd = Reserve("c2", 1 << 30, 1 << 30);
  EXPECT_TRUE(absl::IsFailedPrecondition(odd)) << odd;
  EXPECT_THAT(std::string(odd.message()), ::testing::HasSubstr("no pages of 1048576 KiB"));
  EXPECT_TRUE(absl::IsInvalidArgument(Reserve("c2", 0, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(Reserve("c2", 2 << 20, ~uint64_t{0})));
  EXPECT_EQ(pools_.Release("c2"), absl::OkStatus());
  EXPECT_EQ(Pool(), "50");
  EXPECT_EQ(Memory(), absl::StrCat(100 << 20));
}

TEST(ContainerMounts, RefusesTargetsElsewhere) {
  const testing::TempDir dir;
  GuestPaths paths;
  paths.containers = dir / "containers";
  paths.volumes = dir / "volumes";
  PodMemory memory(dir / "cgroup");
  KernelContainerMounts mounts(paths, &memory);
  agent::v1::Storage storage;
  storage.set_kind(agent::v1::Storage::DISK);
  storage.set_target("/etc");
  EXPECT_EQ(mounts.MountAll("c", With(storage)).code(), absl::StatusCode::kInvalidArgument);
  storage.set_target(dir / "containers/other/rootfs");
  EXPECT_EQ(mounts.MountAll("c", With(storage)).code(), absl::StatusCode::kInvalidArgument);
  storage.set_kind(agent::v1::Storage::TMPFS);
  storage.set_target(dir / "containers/c/rootfs");
  EXPECT_EQ(mounts.MountAll("c", With(storage)).code(), absl::StatusCode::kInvalidArgument);
  storage.set_target(dir / "volumes/../x");
  EXPECT_EQ(mounts.MountAll("c", With(storage)).code(), absl::StatusCode::kInvalidArgument);
  storage.Clear();
  EXPECT_EQ(mounts.MountAll("c", With(storage)).code(), absl::StatusCode::kFailedPrecondition);
}

void AddPart(agent::v1::Storage& storage, const std::string& name, uint32_t mode) {
  agent::v1::Storage::Part& part = *storage.add_parts();
  part.set_name(name);
  part.set_mode(mode);
  part.set_uid(::getuid());
  part.set_gid(::getgid());
}

bool HasMode(const std::string& path, uint32_t mode) {
  struct stat st = {};
  return ::stat(path.c_str(), &st) == 0 && st.st_mode == mode;
}

// Of "volumes/cache": whether containers get what is there, and what is not there is made.
bool PartsOfAVolume(const testing::TempDir& dir, KernelContainerMounts& mounts) {
  dir.Write("containers/c1/config.json", "");
  const std::string target = dir / "containers/c1/m3";
  const auto part = [&] {
    agent::v1::Storage storage;
    storage.set_kind(agent::v1::Storage::VOLUME_PART);
    storage.set_volume(dir / "volumes/cache");
    storage.set_target(target);
    return storage;
  };
  agent::v1::Storage storage = part();
  AddPart(storage, "sub", S_IFDIR | 02775);
  AddPart(storage, "deep", S_IFDIR | 0700);
  bool good = mounts.MountAll("c1", With(storage)).ok() &&
              HasMode(dir / "volumes/cache/sub", S_IFDIR | 02775) &&
              HasMode(target, S_IFDIR | 0700);
  dir.Write("containers/c1/m3/file", "in the volume");
  good = good && dir.Read("volumes/cache/sub/deep/file") == "in the volume" &&
         mounts.UnmountAll("c1").ok() && ::rmdir(target.c_str()) == 0;

  // What is there already counts, whatever the host thinks.
  storage = part();
  AddPart(storage, "file", S_IFDIR | 0755);
  good = good && mounts.MountAll("c1", With(storage)).ok() &&
         dir.Read("containers/c1/m3") == "kept" && mounts.UnmountAll("c1").ok();
  storage = part();
  AddPart(storage, "sub", S_IFDIR | 0755);
  AddPart(storage, "new", S_IFREG | 0640);
  good = good && mounts.MountAll("c1", With(storage)).ok() && HasMode(target, S_IFREG | 0640) &&
         HasMode(dir / "volumes/cache/sub", S_IFDIR | 02775) && mounts.UnmountAll("c1").ok();

  // Links that a container has made.
  dir.Write("secret", "of the guest");
  const std::string cache = dir / "volumes/cache";
  good = good && ::symlink("sub", (cache + "/inside").c_str()) == 0 &&
         ::symlink((dir / "secret").c_str(), (cache + "/absolute").c_str()) == 0 &&
         ::symlink("../../secret", (cache + "/upwards").c_str()) == 0 &&
         ::symlink("nowhere", (cache + "/dangling").c_str()) == 0 &&
         ::mkfifo((cache + "/fifo").c_str(), 0600) == 0;
  storage = part();
  AddPart(storage, "inside", S_IFDIR | 0755);
  AddPart(storage, "new", S_IFREG | 0640);
  good = good && mounts.MountAll("c1", With(storage)).ok() && HasMode(target, S_IFREG | 0640) &&
         mounts.UnmountAll("c1").ok();
  for (const char* name : {"absolute", "upwards", "dangling", "fifo"}) {
    storage = part();
    AddPart(storage, name, S_IFREG | 0644);
    const absl::Status status = mounts.MountAll("c1", With(storage));
    if (status.ok() || absl::IsInvalidArgument(status)) std::cerr << name << status << std::endl;
    good = good && !status.ok() && !absl::IsInvalidArgument(status);
  }
  for (const char* name : {"", ".", "..", "a/b"}) {
    storage = part();
    AddPart(storage, name, S_IFDIR | 0755);
    good = good && absl::IsInvalidArgument(mounts.MountAll("c1", With(storage)));
  }
  storage = part();
  storage.set_volume(dir / "containers/c1");
  good = good && absl::IsInvalidArgument(mounts.MountAll("c1", With(storage)));
  return good;
}

// Ends the process: 0 if the containers of a pod share a volume that outlives each of them.
void CheckVolumes(const testing::TempDir& dir) {
  constexpr int kWrong = 1, kNoNamespace = 2;
  const absl::Status entered = EnterMountNamespace();
  if (!entered.ok()) {
    std::cerr << entered << std::endl;
    ::_exit(kNoNamespace);
  }
  GuestPaths paths;
  paths.shared = dir / "shared";
  paths.containers = dir / "containers";
  paths.volumes = dir / "volumes";
  PodMemory memory(dir / "cgroup");
  KernelContainerMounts mounts(paths, &memory);
  agent::v1::Storage storage;
  storage.set_kind(agent::v1::Storage::TMPFS);
  storage.set_target(dir / "volumes/cache");
  for (const char* option : {"size=1048576", "mode=1770"}) storage.add_options(option);
  bool good = mounts.MountAll("c1", With(storage)).ok();
  dir.Write("volumes/cache/file", "kept");
  good = good && mounts.MountAll("c2", With(storage)).ok() && mounts.UnmountAll("c1").ok() &&
         mounts.MountAll("c1", With(storage)).ok() && dir.Read("volumes/cache/file") == "kept" &&
         MountsBelow(dir / "volumes")->size() == 1;
  struct stat st = {};
  struct statfs fs = {};
  good = good && ::stat((dir / "volumes/cache").c_str(), &st) == 0 &&
         ::statfs((dir / "volumes/cache").c_str(), &fs) == 0 && (st.st_mode & 07777) == 01770 &&
         static_cast<uint64_t>(fs.f_blocks) * static_cast<uint64_t>(fs.f_bsize) == 1048576;
  ::_exit(good && PartsOfAVolume(dir, mounts) ? 0 : kWrong);
}

TEST(ContainerMounts, VolumesAreThePods) {
  const testing::TempDir dir;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) CheckVolumes(dir);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "no mount namespace of its own";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace magnetar::guest
