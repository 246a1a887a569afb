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
#include "src/common/testing/mount_namespace.h"
#include "src/daemon/storage/disk_image.h"
#include "src/daemon/storage/fake_vm.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Json = nlohmann::json;

const absl::Status& OwnMounts() {
  static const absl::Status entered = EnterMountNamespace();
  return entered;
}

// Real mounts below a tmpfs of the test's own.
class ContainerStorageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!own_mounts_.ok()) GTEST_SKIP() << own_mounts_;
    char path[] = "/tmp/container_storage_test.XXXXXX";
    top_ = ::mkdtemp(path);
    ASSERT_EQ(::mount("tmpfs", top_.c_str(), "tmpfs", 0, nullptr), 0);
    sandbox_.sandbox_id = "5a4d";
    sandbox_.directory = top_ + "/run/5a4d";
    sandbox_.shared_directory = sandbox_.directory + "/shared";
    ASSERT_TRUE(MakeDirectories(sandbox_.shared_directory).ok());
    // As the daemon makes it: shared, and read-only for the file server.
    const char* shared = sandbox_.shared_directory.c_str();
    ASSERT_EQ(::mount(shared, shared, nullptr, MS_BIND, nullptr), 0);
    ASSERT_EQ(::mount(nullptr, shared, nullptr, MS_SHARED, nullptr), 0);
    ASSERT_EQ(::mount(nullptr, shared, nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0);
    sandbox_.vm = &vm_;
    sandbox_.blocking = &pool_;
    sandbox_.journal_add = [this](const StorageStep& step) {
      // Like the daemon's: what it refuses to write is in its memory all the same.
      journal_.push_back(step);
      if (!journal_status_.ok()) return journal_status_;
      // Written before the step is done.
      if (step.kind == StorageStep::Kind::kMount) {
        EXPECT_FALSE(IsMounted(step.path));
      }
      ++journalled_;
      return absl::OkStatus();
    };
    sandbox_.journal_remove = [this](const StorageStep& step) {
      if (step.kind == StorageStep::Kind::kMount) {
        EXPECT_FALSE(IsMounted(step.path));
      }
      std::erase_if(journal_, [&step](const StorageStep& s) {
        return s.path + s.serial == step.path + step.serial;
      });
      return absl::OkStatus();
    };
    sandbox_.journal_steps = [this] { return journal_; };
    storage_ = ContainerStorage::Create();
  }
  void TearDown() override {
    if (top_.empty()) return;
    ::umount2(top_.c_str(), MNT_DETACH);
    ::rmdir(top_.c_str());
  }

  std::vector<std::string> Mounts() {
    std::vector<std::string> points = MountPoints(*ReadFile("/proc/self/mountinfo", 64 << 20));
    std::erase_if(
        points, [this](const std::string& point) { return !absl::StartsWith(point, Shared("")); });
    return points;
  }
  bool IsMounted(const std::string& path) {
    const auto mounts = Mounts();
    return std::find(mounts.begin(), mounts.end(), path) != mounts.end();
  }
  std::string Shared(const std::string& rest) { return sandbox_.shared_directory + "/" + rest; }
  static bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

  std::string Directory(const std::string& name) {
    const std::string path = top_ + "/" + name;
    EXPECT_TRUE(MakeDirectories(path, 0755).ok());
    return path;
  }
  std::string File(const std::string& name, const std::string& contents) {
    const std::string path = top_ + "/" + name;
    EXPECT_TRUE(WriteFileAtomically(path, contents).ok());
    return path;
  }

  template <typename T>
  T Run(Co<T> coroutine) {
    asio::io_context io;
    auto future = asio::co_spawn(io, std::move(coroutine), asio::use_future);
    io.run();
    return future.get();
  }
  absl::StatusOr<agent::v1::PreparedContainer> Prepare(ContainerRequest request) {
    return Run(storage_->Prepare(sandbox_, std::move(request)));
  }
  absl::Status Release(const std::string& id = "c1") {
    return Run(storage_->Release(sandbox_, id));
  }

  containerd::types::Mount RootfsMount(const std::string& type, const std::string& source,
                                       const std::vector<std::string>& options) {
    containerd::types::Mount mount;
    mount.set_type(type);
    mount.set_source(source);
    for (const std::string& option : options) mount.add_options(option);
    return mount;
  }
  containerd::types::Mount Overlay(int layers, const std::string& parent = "snapshots") {
    std::vector<std::string> lower;
    for (int i = layers; i > 0; --i) {
      lower.push_back(Directory(absl::StrCat(parent, "/", i, "/fs")));
      File(absl::StrCat(parent, "/", i, "/fs/layer", i), absl::StrCat(i));
    }
    return RootfsMount("overlay", "overlay",
                       {"index=off", absl::StrCat("workdir=", Directory("work")),
                        absl::StrCat("upperdir=", Directory("upper")),
                        absl::StrCat("lowerdir=", absl::StrJoin(lower, ":"))});
  }
  ContainerRequest Request(const containerd::types::Mount& rootfs, Json mounts = Json::array()) {
    ContainerRequest request;
    request.container_id = "c1";
    request.rootfs = {rootfs};
    const Json spec = {
        {"root", {{"path", "rootfs"}}},
        {"mounts", std::move(mounts)},
        {"linux", {{"namespaces", {{{"type", "pid"}}, {{"type", "mount"}}}}}},
    };
    request.spec_json = spec.dump();
    return request;
  }
  static Json Bind(const std::string& source, const std::string& destination,
                   std::vector<std::string> options = {"rbind", "rprivate", "rw"}) {
    return {
        {"source", source}, {"destination", destination}, {"type", "bind"}, {"options", options}};
  }

  void ExpectNothingLeft() {
    EXPECT_THAT(Mounts(), IsEmpty());
    EXPECT_THAT(journal_, IsEmpty());
    EXPECT_FALSE(Exists(Shared("c1")));
    EXPECT_THAT(vm_.disks, IsEmpty());
  }

  // Before there are other threads: a namespace is a thread's.
  const absl::Status own_mounts_ = OwnMounts();
  std::string top_;
  FakeVm vm_;
  asio::thread_pool pool_{2};
  SandboxStorage sandbox_;
  std::vector<StorageStep> journal_;
  int journalled_ = 0;
  absl::Status journal_status_;
  std::unique_ptr<ContainerStorage> storage_;
};

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

TEST_F(ContainerStorageTest, TellsOfTheMountsWithinVolumes) {
  for (const char* name : {"data/a b", "data/c"}) {
    const std::string place = Directory(name);
    ASSERT_EQ(::mount("tmpfs", place.c_str(), "tmpfs", 0, nullptr), 0);
  }
  const std::string deep = Directory("data/c/deep");
  ASSERT_EQ(::mount("tmpfs", deep.c_str(), "tmpfs", 0, nullptr), 0);
  const auto prepared = Prepare(Request(Overlay(1), {Bind(top_ + "/data", "/data", {"rbind"}),
                                                     Bind(top_ + "/data", "/one", {"bind"})}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_THAT(prepared->nested_mounts(), ElementsAre("m0/a b", "m0/c", "m0/c/deep"));
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

TEST_F(ContainerStorageTest, NothingOfTheHostComesBelowABindThatIsAllReadOnly) {
  const std::string data = Directory("data");
  ASSERT_EQ(::mount("tmpfs", data.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(::mount(nullptr, data.c_str(), nullptr, MS_SHARED, nullptr), 0);
  const std::string later = Directory("data/later");
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(data, "/data", {"rbind", "rslave", "rro"})})).ok());
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

TEST_F(ContainerStorageTest, PartOfAnEmptyDirInMemory) {
  const std::string pod = "kubelet/pods/0c1e-4f/";
  const std::string cache = Directory(pod + "volumes/kubernetes.io~empty-dir/cache");
  const std::string part = Directory(pod + "volume-subpaths/cache/main/0");
  const auto request = [&] { return Request(Overlay(1), {Bind(part, "/part")}); };
  ASSERT_TRUE(Prepare(request()).ok());
  ASSERT_TRUE(Release().ok());
  ASSERT_EQ(::mount("tmpfs", cache.c_str(), "tmpfs", 0, nullptr), 0);
  const auto prepared = Prepare(request());
  EXPECT_TRUE(absl::IsFailedPrecondition(prepared.status())) << prepared.status();
  EXPECT_THAT(std::string(prepared.status().message()), HasSubstr("mounts[0] /part: subPath"));
  ExpectNothingLeft();
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
