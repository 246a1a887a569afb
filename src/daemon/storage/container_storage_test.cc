#include "src/daemon/storage/container_storage.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/mounts.h"
#include "src/daemon/storage/disk_image.h"
#include "src/daemon/storage/testing/storage_fixture.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Json = nlohmann::json;

TEST_F(ContainerStorageTest, Overlay) {
  const auto prepared = Prepare(Request(Overlay(2)));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_THAT(prepared->storages(), IsEmpty());
  EXPECT_EQ(Json::parse(prepared->spec())["root"]["path"], "/run/magnetar/shared/c1/rootfs");
  EXPECT_EQ(*ReadFile(Shared("c1/rootfs/layer1")), "1");
  EXPECT_EQ(*ReadFile(Shared("c1/rootfs/layer2")), "2");
  ASSERT_TRUE(WriteFileAtomically(Shared("c1/rootfs/new"), "x").ok());
  EXPECT_EQ(*ReadFile(top_ + "/upper/new"), "x");
  EXPECT_THAT(journal_, SizeIs(1));
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
  EXPECT_TRUE(Release().ok());
}

TEST_F(ContainerStorageTest, OverlayOfSixtyLayers) {
  const auto overlay =
      Overlay(60, "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
  ASSERT_GT(overlay.options(3).size(), 4096u);
  const auto prepared = Prepare(Request(overlay));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  for (int i = 1; i <= 60; ++i) {
    EXPECT_EQ(*ReadFile(Shared(absl::StrCat("c1/rootfs/layer", i))), absl::StrCat(i));
  }
  char directory[4096];
  ASSERT_NE(::getcwd(directory, sizeof(directory)), nullptr);
  EXPECT_THAT(std::string(directory), ::testing::Not(HasSubstr("snapshots")));
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, OverlayWithAVanishedLayer) {
  auto overlay = Overlay(2);
  ASSERT_TRUE(RemoveTree(top_ + "/snapshots/1").ok());
  const auto prepared = Prepare(Request(overlay));
  EXPECT_TRUE(absl::IsFailedPrecondition(prepared.status())) << prepared.status();
  EXPECT_THAT(std::string(prepared.status().message()), HasSubstr("rootfs"));
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, RootfsThatVanished) {
  for (const auto& mount : {RootfsMount("bind", top_ + "/gone", {"rbind", "rw"}),
                            RootfsMount("ext4", top_ + "/gone", {"loop"}),
                            RootfsMount("ext4", "/dev/mapper/gone", {})}) {
    const auto prepared = Prepare(Request(mount));
    EXPECT_TRUE(absl::IsFailedPrecondition(prepared.status())) << prepared.status();
    EXPECT_THAT(std::string(prepared.status().message()), HasSubstr("rootfs"));
    ExpectNothingLeft();
  }
}

TEST_F(ContainerStorageTest, NativeSnapshot) {
  const std::string snapshot = Directory("native/7");
  const auto prepared = Prepare(Request(RootfsMount("bind", snapshot, {"rbind", "rw"})));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_TRUE(WriteFileAtomically(Shared("c1/rootfs/new"), "x").ok());
  EXPECT_EQ(*ReadFile(snapshot + "/new"), "x");
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, ReadOnlyRootfsIsHeldOnTheHost) {
  const auto prepared =
      Prepare(Request(RootfsMount("bind", Directory("native/7"), {"rbind", "ro"})));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_FALSE(WriteFileAtomically(Shared("c1/rootfs/new"), "x").ok());
  ASSERT_TRUE(Release().ok());
}

TEST_F(ContainerStorageTest, HostPaths) {
  const std::string data = Directory("data");
  const std::string below = Directory("data/below");
  ASSERT_EQ(::mount("tmpfs", below.c_str(), "tmpfs", 0, nullptr), 0);
  File("data/below/file", "deep");
  const std::string log = File("termination-log", "");
  const std::string token = Directory("token");
  ASSERT_EQ(::symlink(data.c_str(), (top_ + "/link").c_str()), 0);
  const auto prepared = Prepare(Request(Overlay(1), {
                                                        Bind(data, "/data"),
                                                        Bind(log, "/dev/termination-log"),
                                                        Bind(token, "/token", {"rbind", "ro"}),
                                                        Bind(top_ + "/link", "/link", {"bind"}),
                                                    }));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(*ReadFile(Shared("c1/m0/below/file")), "deep");
  ASSERT_TRUE(WriteExisting(Shared("c1/m1"), "reason").ok());
  EXPECT_EQ(*ReadFile(log), "reason");
  EXPECT_FALSE(WriteFileAtomically(Shared("c1/m2/x"), "").ok());
  // Not recursive: what is mounted there does not show.
  EXPECT_TRUE(Exists(Shared("c1/m3/below")));
  EXPECT_FALSE(Exists(Shared("c1/m3/below/file")));
  EXPECT_THAT(journal_, SizeIs(5));
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
  EXPECT_EQ(*ReadFile(below + "/file"), "deep");
}

TEST_F(ContainerStorageTest, ReadOnlyWithAndWithoutWhatIsMountedBelow) {
  const std::string below = Directory("data/below");
  ASSERT_EQ(::mount("tmpfs", below.c_str(), "tmpfs", 0, nullptr), 0);
  const std::string data = top_ + "/data";
  const auto prepared = Prepare(Request(
      Overlay(1), {Bind(data, "/top", {"rbind", "ro"}), Bind(data, "/all", {"rbind", "rro"})}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_FALSE(WriteFileAtomically(Shared("c1/m0/x"), "").ok());
  EXPECT_TRUE(WriteFileAtomically(Shared("c1/m0/below/x"), "").ok());
  EXPECT_FALSE(WriteFileAtomically(Shared("c1/m1/x"), "").ok());
  EXPECT_FALSE(WriteFileAtomically(Shared("c1/m1/below/y"), "").ok());
  EXPECT_TRUE(WriteFileAtomically(below + "/y", "").ok());
  ASSERT_TRUE(Release().ok());
}

TEST_F(ContainerStorageTest, RefusesTheKernelsFilesystemsWithinAVolume) {
  const std::string proc = Directory("chroot/some/proc");
  ASSERT_EQ(::mount("proc", proc.c_str(), "proc", 0, nullptr), 0);
  for (const char* access : {"rw", "ro", "rro"}) {
    const absl::Status status =
        Prepare(Request(Overlay(1), {Bind(top_ + "/chroot", "/c", {"rbind", access})})).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(proc + ": the host's proc cannot"));
    ExpectNothingLeft();
  }
  EXPECT_TRUE(Prepare(Request(Overlay(1), {Bind(top_ + "/chroot", "/c", {"bind"})})).ok());
  ASSERT_TRUE(Release().ok());
}

TEST_F(ContainerStorageTest, TellsOfTheMountsWithinVolumes) {
  for (const char* name : {"data/a b", "data/\xff", "data/c"}) {
    const std::string place = Directory(name);
    ASSERT_EQ(::mount("tmpfs", place.c_str(), "tmpfs", 0, nullptr), 0);
  }
  const std::string deep = Directory("data/c/deep");
  ASSERT_EQ(::mount("tmpfs", deep.c_str(), "tmpfs", 0, nullptr), 0);
  const auto prepared = Prepare(Request(
      Overlay(1), {Bind(top_ + "/data", "/data", {"rbind"}), Bind(top_ + "/data", "/one", {"bind"}),
                   Bind(top_ + "/data", "/f", {"rbind", "rslave"})}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_THAT(prepared->nested_mounts(), ElementsAre("m0/a b", "m0/\xff", "m0/c", "m0/c/deep"));
  // A name is no text: the message holds it all the same.
  agent::v1::PreparedContainer parsed;
  EXPECT_TRUE(parsed.ParseFromString(prepared->SerializeAsString()));
  EXPECT_EQ(parsed.nested_mounts(1), "m0/\xff");
  ASSERT_TRUE(Release().ok());
}

TEST_F(ContainerStorageTest, PropagationFromTheHost) {
  const std::string data = Directory("data");
  Directory("data/later");
  ASSERT_EQ(::mount("tmpfs", data.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(::mount(nullptr, data.c_str(), nullptr, MS_SHARED, nullptr), 0);
  const std::string later = Directory("data/later");
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(data, "/follows", {"rbind", "rslave"}),
                                           Bind(data, "/private", {"rbind", "rprivate"})}))
                  .ok());
  ASSERT_EQ(::mount("tmpfs", later.c_str(), "tmpfs", 0, nullptr), 0);
  File("data/later/file", "x");
  EXPECT_TRUE(Exists(Shared("c1/m0/later/file")));
  EXPECT_FALSE(Exists(Shared("c1/m1/later/file")));
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
  EXPECT_TRUE(Exists(later + "/file"));
}

TEST_F(ContainerStorageTest, NothingOfTheHostComesBelowAReadOnlyBind) {
  const std::string data = Directory("data");
  ASSERT_EQ(::mount("tmpfs", data.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(::mount(nullptr, data.c_str(), nullptr, MS_SHARED, nullptr), 0);
  const std::string later = Directory("data/later");
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(data, "/data", {"rbind", "rslave", "ro"})})).ok());
  ASSERT_EQ(::mount("tmpfs", later.c_str(), "tmpfs", 0, nullptr), 0);
  EXPECT_FALSE(WriteFileAtomically(Shared("c1/m0/later/x"), "").ok());
  EXPECT_FALSE(Exists(later + "/x"));
  ASSERT_TRUE(Release().ok());
}

TEST_F(ContainerStorageTest, EmptyDirInMemoryIsTheGuests) {
  const std::string pod = "kubelet/pods/0c1e-4f/";
  const std::string volumes = pod + "volumes/kubernetes.io~empty-dir/";
  const std::string cache = Directory(volumes + "cache");
  ASSERT_EQ(::mount("tmpfs", cache.c_str(), "tmpfs", 0, "size=1m,mode=1777"), 0);
  const std::string disk = Directory(volumes + "disk");
  const auto prepared = Prepare(Request(
      Overlay(1), {Bind(disk, "/disk"), Bind(cache, "/cache", {"rbind", "rprivate", "ro"})}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_EQ(prepared->storages_size(), 1);
  const auto& storage = prepared->storages(0);
  EXPECT_EQ(storage.kind(), agent::v1::Storage::TMPFS);
  EXPECT_EQ(storage.target(), "/run/magnetar/pod/volumes/0c1e-4f_cache");
  EXPECT_EQ(absl::StrJoin(storage.options(), ","), "mode=1777,uid=0,gid=0,size=1048576");
  const Json mounts = Json::parse(prepared->spec())["mounts"];
  EXPECT_EQ(mounts[0]["source"], "/run/magnetar/shared/c1/m0");
  EXPECT_EQ(mounts[1]["source"], "/run/magnetar/pod/volumes/0c1e-4f_cache");
  EXPECT_EQ(mounts[1]["options"], Json({"rbind", "rprivate", "ro"}));
  EXPECT_THAT(Mounts(), SizeIs(2));  // the root filesystem and the one on the disk
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, EmptyDirOfHugePagesIsTheGuests) {
  const std::string volume =
      Directory("kubelet/pods/0c1e-4f/volumes/kubernetes.io~empty-dir/pages");
  if (::mount("hugetlbfs", volume.c_str(), "hugetlbfs", 0, "pagesize=2M,size=8M,mode=1777") != 0) {
    GTEST_SKIP() << "no hugetlbfs";
  }
  ContainerRequest request = Request(Overlay(1), {Bind(volume, "/pages")});
  Json spec = Json::parse(request.spec_json);
  spec["linux"]["resources"]["hugepageLimits"] =
      Json::parse(R"([{"pageSize": "2MB", "limit": 4194304}])");
  request.spec_json = spec.dump();
  const auto prepared = Prepare(std::move(request));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_EQ(prepared->storages_size(), 1);
  EXPECT_EQ(prepared->storages(0).kind(), agent::v1::Storage::HUGETLBFS);
  EXPECT_EQ(prepared->storages(0).target(), "/run/magnetar/pod/volumes/0c1e-4f_pages");
  EXPECT_EQ(absl::StrJoin(prepared->storages(0).options(), ","),
            "mode=1777,uid=0,gid=0,pagesize=2097152,size=8388608");
  ASSERT_EQ(prepared->huge_pages_size(), 1);
  EXPECT_EQ(prepared->huge_pages(0).page_size(), 2u << 20);
  EXPECT_EQ(prepared->huge_pages(0).bytes(), 4u << 20);
  EXPECT_EQ(prepared->huge_pages(0).field(), "mounts[0] /pages");
  EXPECT_EQ(Json::parse(prepared->spec())["mounts"][0]["source"],
            "/run/magnetar/pod/volumes/0c1e-4f_pages");
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, PartOfAnEmptyDirInMemory) {
  const std::string pod = "kubelet/pods/0c1e-4f/";
  const std::string name = pod + "volumes/kubernetes.io~empty-dir/cache";
  const std::string cache = Directory(name);
  const std::string part = Directory(pod + "volume-subpaths/cache/main/0");
  const std::string file = File(pod + "volume-subpaths/cache/main/1", "");
  const auto request = [&] {
    return Request(Overlay(1), {Bind(part, "/part"), Bind(file, "/file")});
  };
  ASSERT_TRUE(Prepare(request()).ok()) << "on the disk it is shared like anything else";
  ASSERT_TRUE(Release().ok());
  ASSERT_EQ(::mount("tmpfs", cache.c_str(), "tmpfs", 0, "mode=2770,gid=7"), 0);
  const std::string deep = Directory(name + "/a b/deep");
  ASSERT_EQ(::chmod(deep.c_str(), 01750), 0);
  ASSERT_EQ(::chown(deep.c_str(), 5, 6), 0);
  File(name + "/f", "");
  const auto refused = [&](const char* message) {
    const auto prepared = Prepare(request());
    EXPECT_TRUE(absl::IsFailedPrecondition(prepared.status())) << prepared.status();
    EXPECT_THAT(std::string(prepared.status().message()), HasSubstr(message));
    ExpectNothingLeft();
  };
  refused("mounts[0] /part: subPath of an emptyDir in memory: it is no part of the volume");
  ASSERT_EQ(::mount(deep.c_str(), part.c_str(), nullptr, MS_BIND, nullptr), 0);
  ASSERT_EQ(::mount((cache + "/f").c_str(), file.c_str(), nullptr, MS_BIND, nullptr), 0);

  const auto prepared = Prepare(request());
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_EQ(prepared->storages_size(), 4);
  const auto& whole = prepared->storages(0);
  EXPECT_EQ(whole.kind(), agent::v1::Storage::TMPFS);
  EXPECT_EQ(whole.target(), "/run/magnetar/pod/volumes/0c1e-4f_cache");
  EXPECT_THAT(absl::StrJoin(whole.options(), ","), ::testing::StartsWith("mode=2770,uid=0,gid=7"));
  const auto& directory = prepared->storages(1);
  EXPECT_EQ(directory.kind(), agent::v1::Storage::VOLUME_PART);
  EXPECT_EQ(directory.volume(), whole.target());
  EXPECT_EQ(directory.target(), "/run/magnetar/containers/c1/m0");
  ASSERT_EQ(directory.parts_size(), 2);
  EXPECT_EQ(directory.parts(0).name(), "a b");
  EXPECT_EQ(directory.parts(1).name(), "deep");
  EXPECT_EQ(directory.parts(1).mode(), static_cast<uint32_t>(S_IFDIR | 01750));
  EXPECT_EQ(directory.parts(1).uid(), 5u);
  EXPECT_EQ(directory.parts(1).gid(), 6u);
  ASSERT_EQ(prepared->storages(3).parts_size(), 1);
  EXPECT_TRUE(S_ISREG(prepared->storages(3).parts(0).mode()));
  const Json mounts = Json::parse(prepared->spec())["mounts"];
  EXPECT_EQ(mounts[0]["source"], "/run/magnetar/containers/c1/m0");
  EXPECT_EQ(mounts[1]["source"], "/run/magnetar/containers/c1/m1");
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();

  File(name + "/full", "text");
  ASSERT_EQ(::mount((cache + "/full").c_str(), file.c_str(), nullptr, MS_BIND, nullptr), 0);
  refused("mounts[1] /file: subPath of an emptyDir in memory: /full has contents on the host");
  ASSERT_EQ(::umount(file.c_str()), 0);
  ASSERT_EQ(::rmdir(deep.c_str()), 0);
  refused("mounts[0] /part: subPath of an emptyDir in memory: /a b/deep");
}

TEST_F(ContainerStorageTest, MountsReachAFileServersNamespace) {
  // What the file server sees: a slave of the shared directory.
  const std::string server = Directory("server");
  ASSERT_EQ(::mount(sandbox_.shared_directory.c_str(), server.c_str(), nullptr, MS_BIND, nullptr),
            0);
  ASSERT_EQ(::mount(nullptr, server.c_str(), nullptr, MS_SLAVE, nullptr), 0);
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(File("f", "text"), "/f")})).ok());
  EXPECT_EQ(*ReadFile(server + "/c1/rootfs/layer1"), "1");
  EXPECT_EQ(*ReadFile(server + "/c1/m0"), "text");
  EXPECT_NE(::mkdir((server + "/evil").c_str(), 0755), 0);
  // A file server that holds a file open does not hold up the release.
  const UniqueFd held(::open((server + "/c1/rootfs/layer1").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
  EXPECT_FALSE(Exists(server + "/c1"));
}

TEST_F(ContainerStorageTest, WhatCannotBeShared) {
  const std::string socket_path = top_ + "/socket";
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string fifo = top_ + "/fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const std::string root = top_ + "/root";
  ASSERT_EQ(::symlink("/", root.c_str()), 0);

  const std::pair<std::string, const char*> cases[] = {
      {socket_path, "mounts[0] /x: sockets"},
      {fifo, "mounts[0] /x: FIFOs"},
      {"/dev/null", "mounts[0] /x: devices"},
      {"/dev", "mounts[0] /x: the host's /dev"},
      {"/dev/pts", "mounts[0] /x: the host's devpts"},
      {"/proc", "mounts[0] /x: the host's proc"},
      {"/proc/sys/kernel", "mounts[0] /x: the host's proc"},
      {"/proc/self/ns/net", "mounts[0] /x: the host's nsfs"},
      {"/sys", "mounts[0] /x: the host's sysfs"},
      {root, "mounts[0] /x: the host's root directory"},
      {top_ + "/missing", "mounts[0] /x: open"},
      {top_ + "/run", "sandboxer's own"},
      {top_, "sandboxer's own"},
      {sandbox_.directory, "sandboxer's own"},
      {sandbox_.shared_directory, "sandboxer's own"},
  };
  for (const auto& [source, message] : cases) {
    const auto prepared = Prepare(Request(Overlay(1), {Bind(source, "/x")}));
    EXPECT_TRUE(absl::IsFailedPrecondition(prepared.status())) << prepared.status();
    EXPECT_THAT(std::string(prepared.status().message()), HasSubstr(message));
    ExpectNothingLeft();
  }
}

TEST_F(ContainerStorageTest, RefusedSpecsMountNothing) {
  const auto prepared =
      Prepare(Request(Overlay(1), {{{"type", "unheard-of"}, {"destination", "/x"}}}));
  EXPECT_TRUE(absl::IsInvalidArgument(prepared.status())) << prepared.status();
  EXPECT_EQ(journalled_, 0);
}

TEST_F(ContainerStorageTest, PlacesTakenByAGuest) {
  // A share that the guest can write to, and does.
  ASSERT_EQ(
      ::mount(nullptr, sandbox_.shared_directory.c_str(), nullptr, MS_REMOUNT | MS_BIND, nullptr),
      0);
  const std::string victim = Directory("victim/rootfs");
  ASSERT_EQ(::symlink((top_ + "/victim").c_str(), Shared("c1").c_str()), 0);
  EXPECT_FALSE(Prepare(Request(Overlay(1))).ok());
  EXPECT_FALSE(IsMounted(victim));
  EXPECT_THAT(journal_, IsEmpty());
  ASSERT_EQ(::mkdir(Shared("c1").c_str(), 0755), 0);
  ASSERT_EQ(::symlink(victim.c_str(), Shared("c1/rootfs").c_str()), 0);
  EXPECT_TRUE(Prepare(Request(Overlay(1))).ok());
  EXPECT_TRUE(IsMounted(Shared("c1/rootfs")));
  EXPECT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, PreparedAgain) {
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(Directory("a"), "/a")})).ok());
  const auto again = Prepare(Request(Overlay(1), {Bind(Directory("a"), "/a")}));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(Mounts(), SizeIs(2));
  EXPECT_THAT(journal_, SizeIs(2));
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, ReleasedFromTheJournalOfAnEarlierDaemon) {
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(Directory("a"), "/a")})).ok());
  // A step that was journalled and never done.
  StorageStep undone = journal_.back();
  undone.path = Shared("c1/m9");
  journal_.push_back(undone);
  storage_ = ContainerStorage::Create();
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, SeveralContainersAtOnce) {
  asio::io_context io;
  int prepared = 0;
  for (int i = 0; i < 8; ++i) {
    ContainerRequest request =
        Request(RootfsMount("bind", Directory(absl::StrCat("native/", i)), {"rbind"}));
    request.container_id = absl::StrCat("c", i);
    auto prepare = [](ContainerStorage* storage, SandboxStorage* sandbox, ContainerRequest r,
                      int* done) -> Co<void> {
      auto work = storage->Prepare(*sandbox, std::move(r));
      const auto result = co_await std::move(work);
      EXPECT_TRUE(result.ok()) << result.status();
      *done += result.ok();
    };
    asio::co_spawn(io, prepare(storage_.get(), &sandbox_, std::move(request), &prepared),
                   asio::detached);
  }
  io.run();
  EXPECT_EQ(prepared, 8);
  EXPECT_THAT(Mounts(), SizeIs(8));
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(Release(absl::StrCat("c", i)).ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, JournalThatCannotBeWritten) {
  journal_status_ = absl::ResourceExhaustedError("disk full");
  const auto prepared = Prepare(Request(Overlay(1)));
  EXPECT_TRUE(absl::IsResourceExhausted(prepared.status()));
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, Blockfile) {
  const std::string image = File("image", std::string(65536, 'i'));
  const auto prepared = Prepare(Request(RootfsMount("ext4", image, {"loop", "rw", "noatime"})));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_EQ(prepared->storages_size(), 1);
  const auto& storage = prepared->storages(0);
  EXPECT_EQ(storage.kind(), agent::v1::Storage::DISK);
  EXPECT_EQ(storage.serial(), DiskSerial("c1"));
  EXPECT_EQ(storage.fstype(), "ext4");
  EXPECT_EQ(storage.target(), "/run/magnetar/containers/c1/rootfs");
  EXPECT_FALSE(storage.read_only());
  ASSERT_EQ(storage.options_size(), 1);
  EXPECT_EQ(storage.options(0), "noatime");
  EXPECT_EQ(Json::parse(prepared->spec())["root"]["path"], "/run/magnetar/containers/c1/rootfs");
  ASSERT_EQ(vm_.disks.count(DiskSerial("c1")), 1u);
  char byte = 0;
  EXPECT_EQ(::pread(vm_.disks[DiskSerial("c1")].fd.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'i');

  // No second container gets it meanwhile, not even in another sandbox.
  auto second = Request(RootfsMount("ext4", image, {"loop", "rw"}));
  second.container_id = "c2";
  EXPECT_TRUE(absl::IsFailedPrecondition(Prepare(std::move(second)).status()));

  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, DiskThatCannotBeAttached) {
  const std::string image = File("image", "i");
  vm_.add_disk_status = absl::UnavailableError("QMP: gone");
  const auto prepared = Prepare(Request(RootfsMount("ext4", image, {"loop"})));
  EXPECT_TRUE(absl::IsUnavailable(prepared.status())) << prepared.status();
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, DiskIsDetachedWhenAMountFails) {
  const std::string image = File("image", "i");
  const auto prepared =
      Prepare(Request(RootfsMount("ext4", image, {"loop"}), {Bind("/dev/null", "/x")}));
  EXPECT_FALSE(prepared.ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, DiskThatStaysAttachedStaysInTheJournal) {
  const std::string image = File("image", "i");
  ASSERT_TRUE(Prepare(Request(RootfsMount("ext4", image, {"loop"}))).ok());
  vm_.remove_disk_status = absl::DeadlineExceededError("guest does not let go");
  EXPECT_TRUE(absl::IsDeadlineExceeded(Release()));
  EXPECT_THAT(journal_, SizeIs(1));
  vm_.remove_disk_status = absl::UnavailableError("QMP: the connection is gone");
  EXPECT_TRUE(absl::IsUnavailable(Release()));
  EXPECT_THAT(journal_, SizeIs(1));
  vm_.remove_disk_status = absl::OkStatus();
  EXPECT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, ReleasedAfterTheVmWentAway) {
  const std::string image = File("image", "i");
  ASSERT_TRUE(Prepare(Request(RootfsMount("ext4", image, {"loop"}))).ok());
  vm_.disks.clear();
  sandbox_.vm = nullptr;
  EXPECT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(ContainerStorageTest, UnmountAll) {
  const std::string below = Directory("data/below dir");
  ASSERT_EQ(::mount("tmpfs", below.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_TRUE(Prepare(Request(Overlay(2), {Bind(top_ + "/data", "/data")})).ok());
  const UniqueFd held(::open(Shared("c1/rootfs/layer1").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(storage_->UnmountAll(sandbox_.shared_directory).ok());
  EXPECT_THAT(Mounts(), IsEmpty());
  EXPECT_TRUE(storage_->UnmountAll(sandbox_.shared_directory).ok());
  EXPECT_TRUE(storage_->UnmountAll(top_ + "/missing").ok());
}

TEST_F(ContainerStorageTest, UnmountAllFollowsNoPathOfAGuest) {
  // Two pods have the same directory, with a mount in it.
  const std::string data = Directory("data");
  ASSERT_EQ(::mount("tmpfs", data.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(::mount("tmpfs", Directory("data/a/boot").c_str(), "tmpfs", 0, nullptr), 0);
  const std::string boot = Directory("host/boot");
  ASSERT_EQ(::mount("tmpfs", boot.c_str(), "tmpfs", 0, nullptr), 0);
  File("host/boot/kernel", "x");
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(data, "/data")})).ok());
  // The other pod's guest.
  ASSERT_EQ(::rename((data + "/a").c_str(), (data + "/b").c_str()), 0);
  ASSERT_EQ(::symlink((top_ + "/host").c_str(), (data + "/a").c_str()), 0);
  ASSERT_TRUE(storage_->UnmountAll(sandbox_.shared_directory).ok());
  EXPECT_THAT(Mounts(), IsEmpty());
  EXPECT_TRUE(Exists(boot + "/kernel"));
}

TEST_F(ContainerStorageTest, BadContainerIds) {
  for (const char* id : {"", "..", "a/b", "../x"}) {
    ContainerRequest request = Request(Overlay(1));
    request.container_id = id;
    EXPECT_TRUE(absl::IsInvalidArgument(Prepare(std::move(request)).status())) << id;
    EXPECT_TRUE(absl::IsInvalidArgument(Release(id))) << id;
  }
}

// Last: failpoints stay for the life of the process.
TEST_F(ContainerStorageTest, FailureAfterAStepUndoesIt) {
  SetFailpoints({"storage.step.after=error"});
  const auto prepared = Prepare(Request(Overlay(1)));
  EXPECT_TRUE(absl::IsInternal(prepared.status())) << prepared.status();
  EXPECT_EQ(journalled_, 1);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace magnetar::daemon
