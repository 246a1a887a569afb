#include "src/daemon/storage/file_server.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>

#include "magnetar/own_thread.h"
#include "src/daemon/storage/testing/storage_fixture.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using FileServerTest = ContainerStorageTest;

// A process with a mount namespace whose root is the shared directory, as a file server has it.
class FileServer {
 public:
  explicit FileServer(const std::string& shared) {
    int ready[2];
    EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      const bool good = ::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && ::unshare(CLONE_NEWNS) == 0 &&
                        ::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0 &&
                        ::chdir(shared.c_str()) == 0 && ::syscall(SYS_pivot_root, ".", ".") == 0 &&
                        ::umount2(".", MNT_DETACH) == 0;
      if (good) (void)!::write(ready[1], "x", 1);
      ::close(ready[1]);
      if (good) ::pause();
      ::_exit(1);
    }
    ::close(ready[1]);
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    identity_ = *IdentifyProcess(pid_);
  }
  ~FileServer() { End(); }
  void End() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  const ProcessIdentity& identity() const { return identity_; }
  std::string Root(const std::string& path) const {
    return absl::StrCat("/proc/", pid_, "/root/", path);
  }
  std::vector<std::string> Mounts() const {
    std::vector<std::string> points =
        MountPoints(*ReadFile(absl::StrCat("/proc/", pid_, "/mountinfo"), 64 << 20));
    std::erase(points, "/");
    return points;
  }

 private:
  pid_t pid_ = 0;
  ProcessIdentity identity_;
};

TEST_F(FileServerTest, MountsInTheFileServersNamespaceOnly) {
  FileServer server(sandbox_.shared_directory);
  sandbox_.file_server = [&] { return server.identity(); };
  const std::string below = Directory("data/below");
  ASSERT_EQ(::mount("tmpfs", below.c_str(), "tmpfs", 0, nullptr), 0);
  File("data/below/file", "deep");
  const auto prepared = Prepare(
      Request(Overlay(2), {Bind(top_ + "/data", "/data", {"rbind"}), Bind(File("f", "x"), "/f")}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_THAT(prepared->nested_mounts(), ElementsAre("m0/below"));
  EXPECT_THAT(Mounts(), IsEmpty());
  EXPECT_THAT(server.Mounts(), ElementsAre("/c1/rootfs", "/c1/m0", "/c1/m0/below", "/c1/m1"));
  EXPECT_EQ(*ReadFile(server.Root("c1/m0/below/file")), "deep");
  EXPECT_TRUE(WriteFileAtomically(server.Root("c1/rootfs/new"), "").ok());
  // Its owner may unmount and remove it meanwhile.
  EXPECT_EQ(::umount(below.c_str()), 0);
  EXPECT_EQ(::rmdir(below.c_str()), 0) << strerror(errno);

  ASSERT_TRUE(Release().ok());
  EXPECT_THAT(server.Mounts(), IsEmpty());
  ExpectNothingLeft();
}

TEST_F(FileServerTest, WhatTheHostMountsLaterComesInAndGoes) {
  const std::string data = Directory("data");
  ASSERT_EQ(::mount("tmpfs", data.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(::mount(nullptr, data.c_str(), nullptr, MS_SHARED, nullptr), 0);
  const std::string later = Directory("data/later");
  FileServer server(sandbox_.shared_directory);
  sandbox_.file_server = [&] { return server.identity(); };
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(data, "/data", {"rbind", "rslave"})})).ok());
  ASSERT_EQ(::mount("tmpfs", later.c_str(), "tmpfs", 0, nullptr), 0);
  File("data/later/file", "x");
  EXPECT_EQ(*ReadFile(server.Root("c1/m0/later/file")), "x");
  EXPECT_EQ(::umount(later.c_str()), 0) << strerror(errno);
  EXPECT_THAT(server.Mounts(), ElementsAre("/c1/rootfs", "/c1/m0"));
  ASSERT_TRUE(Release().ok());
}

// Somebody holds its namespace; what was mounted there must not stay.
TEST_F(FileServerTest, ANamespaceThatOutlivesItsFileServerHoldsNothing) {
  auto server = std::make_unique<FileServer>(sandbox_.shared_directory);
  sandbox_.file_server = [&] { return server->identity(); };
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(Directory("data"), "/data")})).ok());
  const absl::StatusOr<UniqueFd> held = OpenMountNamespace(server->identity());
  ASSERT_TRUE(held.ok()) << held.status();
  server->End();
  ASSERT_TRUE(storage_->UnmountAll(sandbox_.shared_directory).ok());
  const UniqueFd proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  const absl::StatusOr<std::string> info =
      RunOnOwnThread([&] { return EnterMountNamespaceOnThread(held->get()); },
                     [&] { return ReadFileAt(proc.get(), "thread-self/mountinfo"); });
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_THAT(MountPoints(*info), ElementsAre("/"));
}

TEST_F(FileServerTest, MountsEndWithTheFileServer) {
  FileServer server(sandbox_.shared_directory);
  sandbox_.file_server = [&] { return server.identity(); };
  ASSERT_TRUE(Prepare(Request(Overlay(1), {Bind(Directory("data"), "/data")})).ok());
  server.End();
  ASSERT_TRUE(Release().ok());
  EXPECT_EQ(Prepare(Request(Overlay(1))).status().code(), absl::StatusCode::kUnavailable);
  ExpectNothingLeft();
}

TEST_F(FileServerTest, OnlyTheSharedDirectoryIsMountedIn) {
  FileServer elsewhere(top_);
  sandbox_.file_server = [&] { return elsewhere.identity(); };
  const auto prepared = Prepare(Request(Overlay(1)));
  EXPECT_THAT(prepared.status().ToString(), HasSubstr("is not the shared directory"));
  const absl::StatusOr<ProcessIdentity> self = IdentifyProcess(::getpid());
  sandbox_.file_server = [&] { return *self; };
  EXPECT_THAT(Prepare(Request(Overlay(1))).status().ToString(), HasSubstr("no mount namespace"));
}

}  // namespace
}  // namespace magnetar::daemon
