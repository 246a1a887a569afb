#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <thread>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/child_process.h"
#include "magnetar/files.h"
#include "src/ninep/testing/client.h"

namespace magnetar::ninep {
namespace {

using testing::Client;

// The program itself on a directory. Needs root.
class NinepJailTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    char name[] = "/tmp/ninep-jail.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    std::filesystem::create_directories(Path("c1/rootfs"));
    ASSERT_TRUE(WriteFileAtomically(Path("c1/rootfs/under"), "", 0644).ok());
    Prepare();
    auto [near, far] = testing::SocketPair();
    client_.emplace(std::move(near));
    auto started = Spawn({.argv = {NINEP, "--fd=5", absl::StrCat("--directory=", directory_)},
                          // It would look for leaks by /proc, which is not in there.
                          .env = {"ASAN_OPTIONS=detect_leaks=0"},
                          .descriptors = {{far.get(), 5}, {STDERR_FILENO, STDERR_FILENO}}});
    ASSERT_TRUE(started.ok()) << started.status();
    process_ = *std::move(started);
    far.reset();
    // Once it answers it is where it stays.
    ASSERT_EQ(client_->Version(), 0);
    ASSERT_EQ(client_->Attach(0), 0);
  }

  void TearDown() override {
    if (process_.running()) {
      EXPECT_TRUE(process_.Signal(SIGKILL).ok());
      EXPECT_TRUE(process_.WaitBlocking().ok());
    }
    std::filesystem::remove_all(directory_);
  }

  // Before the program starts.
  virtual void Prepare() {}

  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }
  std::string Proc(const std::string& name) const {
    return absl::StrCat("/proc/", process_.pid(), "/", name);
  }

  std::string Status(const std::string& field) const {
    std::ifstream file(Proc("status"));
    for (std::string line; std::getline(file, line);) {
      const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(":\t", 1));
      if (parts[0] == field) return parts[1];
    }
    return "";
  }

  std::string directory_;
  std::optional<Client> client_;
  ChildProcess process_;
};

TEST_F(NinepJailTest, HoldsLittle) {
  EXPECT_EQ(Status("NoNewPrivs"), "1");
  for (const char* field : {"CapPrm", "CapEff", "CapBnd"}) {
    uint64_t set = 0;
    ASSERT_TRUE(absl::SimpleHexAtoi(Status(field), &set));
    // chown, dac_override, dac_read_search, fowner, fsetid, setgid, setuid, mknod, setfcap
    EXPECT_EQ(set & ~uint64_t{0x880000df}, 0U) << field;
  }
  for (const char* field : {"CapInh", "CapAmb"}) EXPECT_EQ(Status(field), "0000000000000000");
  for (const char* kind : {"mnt", "net", "ipc", "uts"}) {
    struct stat own = {}, its = {};
    ASSERT_EQ(::stat(absl::StrCat("/proc/self/ns/", kind).c_str(), &own), 0);
    ASSERT_EQ(::stat(Proc(absl::StrCat("ns/", kind)).c_str(), &its), 0);
    EXPECT_NE(own.st_ino, its.st_ino) << kind;
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  for (const auto& thread : std::filesystem::directory_iterator(Proc("task"))) {
    std::ifstream file(thread.path() / "status");
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    EXPECT_THAT(text, ::testing::HasSubstr("\nSeccomp:\t2\n")) << thread.path();
  }
#endif
}

TEST_F(NinepJailTest, HasTheDirectoryAloneAsItsRoot) {
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(Proc("root/"))) {
    found.insert(entry.path().filename());
  }
  EXPECT_EQ(found, (std::set<std::string>{"c1"}));
  std::ifstream file(Proc("mountinfo"));
  std::vector<std::string> mounts;
  for (std::string line; std::getline(file, line);) mounts.push_back(line);
  ASSERT_EQ(mounts.size(), 1U) << ::testing::PrintToString(mounts);
  for (const char* option : {"nosuid", "nodev", "noexec"}) {
    EXPECT_THAT(mounts[0], ::testing::HasSubstr(option));
  }
}

TEST_F(NinepJailTest, ServesWhatIsMountedInItsNamespaceLater) {
  std::thread([this] {
    const UniqueFd space(::open(Proc("ns/mnt").c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(::unshare(CLONE_FS), 0);
    ASSERT_EQ(::setns(space.get(), CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("none", "/c1/rootfs", "tmpfs", 0, nullptr), 0);
    ASSERT_EQ(::mkdir("/c1/rootfs/mounted", 0755), 0);
  }).join();
  EXPECT_FALSE(std::filesystem::exists(Path("c1/rootfs/mounted"))) << "nothing on the host";
  ASSERT_EQ(client_->Walk(0, 1, {"c1", "rootfs", "mounted"}), 0);
  EXPECT_EQ(client_->answer.U16(), 3U);
}

// As the daemon hands it: only what is mounted below may be written to.
class NinepReadOnlyJailTest : public NinepJailTest {
 protected:
  void Prepare() override {
    const char* path = directory_.c_str();
    ASSERT_EQ(::mount(path, path, nullptr, MS_BIND, nullptr), 0);
    ASSERT_EQ(::mount(nullptr, path, nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0);
    ASSERT_EQ(::mount("none", Path("c1/rootfs").c_str(), "tmpfs", 0, nullptr), 0);
    mounted_ = true;
  }
  void TearDown() override {
    if (mounted_) {
      EXPECT_EQ(::umount2(Path("c1/rootfs").c_str(), MNT_DETACH), 0);
      EXPECT_EQ(::umount2(directory_.c_str(), MNT_DETACH), 0);
    }
    NinepJailTest::TearDown();
  }

  bool mounted_ = false;
};

TEST_F(NinepReadOnlyJailTest, StaysReadOnly) {
  ASSERT_EQ(client_->Walk(0, 1, {}), 0);
  EXPECT_EQ(client_->Create(1, "file", O_RDWR, 0600), EROFS);
  ASSERT_EQ(client_->Walk(0, 2, {"c1"}), 0);
  EXPECT_EQ(client_->Create(2, "file", O_RDWR, 0600), EROFS);
}

// Each kind of call once, under the filter and by the way to descriptors that the jail leaves.
TEST_F(NinepJailTest, DoesItsWorkInThere) {
  ASSERT_EQ(client_->Attach(1, 1000), 0);
  ASSERT_EQ(client_->Walk(1, 2, {}), 0);
  ASSERT_EQ(client_->Create(2, "file", O_RDWR, 0640, 2000), 0);
  EXPECT_EQ(client_->Write(2, 0, "text"), 0);
  EXPECT_EQ(client_->SetAttributes(2, 0x1 | 0x8 | 0x20 | 0x100, 0600, 0, 0, 2), 0);
  EXPECT_EQ(client_->SetAttributes(2, 0x2, 0, 1001, 0, 0), 0);
  Writer sync(kTfsync, 1);
  sync.U32(2);
  sync.U32(0);
  EXPECT_EQ(client_->Call(std::move(sync)), 0);
  EXPECT_EQ(client_->OfFid(kTstatfs, 2), 0);
  ASSERT_EQ(client_->Walk(0, 3, {"file"}), 0);
  EXPECT_EQ(client_->Open(3, O_RDONLY), 0);
  std::string data;
  EXPECT_EQ(client_->Read(3, 0, 100, data), 0);
  EXPECT_EQ(data, "te");
  EXPECT_EQ(client_->Link(0, 3, "hard"), 0);
  Writer symlink(kTsymlink, 1);
  symlink.U32(0);
  symlink.String("soft");
  symlink.String("/etc/passwd");
  symlink.U32(0);
  EXPECT_EQ(client_->Call(std::move(symlink)), 0);
  ASSERT_EQ(client_->Walk(0, 4, {"soft"}), 0);
  EXPECT_EQ(client_->OfFid(kTreadlink, 4), 0);
  Writer mknod(kTmknod, 1);
  mknod.U32(0);
  mknod.String("fifo");
  for (const uint32_t field : {S_IFIFO | 0600U, 0U, 0U, 0U}) mknod.U32(field);
  EXPECT_EQ(client_->Call(std::move(mknod)), 0);
  Writer rename(kTrenameat, 1);
  rename.U32(0);
  rename.String("hard");
  rename.U32(0);
  rename.String("harder");
  EXPECT_EQ(client_->Call(std::move(rename)), 0);
  EXPECT_EQ(client_->Unlink(0, "harder"), 0);
  ASSERT_EQ(client_->Walk(0, 5, {}), 0);
  EXPECT_EQ(client_->Open(5, O_RDONLY | O_DIRECTORY), 0);
  EXPECT_EQ(client_->Read(5, 0, 4096, data, kTreaddir), 0);
  EXPECT_THAT(data, ::testing::HasSubstr("fifo"));
  EXPECT_EQ(client_->XattrWalk(3, 6, ""), 0);
  struct stat st = {};
  ASSERT_EQ(::stat(Path("file").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1001U);
  EXPECT_EQ(st.st_gid, 2000U);
  EXPECT_EQ(st.st_mode & 07777, 0600U);
  EXPECT_EQ(st.st_mtim.tv_sec, 1000);
}

// Also after it has acted in the name of others, which makes the kernel forget what a thread was to
// be told, and with a client that is still there.
TEST_F(NinepJailTest, EndsWithItsParent) {
  auto [near, far] = testing::SocketPair();
  int pids[2];
  ASSERT_EQ(::pipe2(pids, O_CLOEXEC), 0);
  const UniqueFd from_parent(pids[0]), to_us(pids[1]);
  const std::string directory = absl::StrCat("--directory=", directory_);
  const pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    const pid_t server = ::fork();
    if (server == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
      ::dup2(far.get(), 5);
      ::execl(NINEP, NINEP, "--fd=5", directory.c_str(), nullptr);
      ::_exit(127);
    }
    [[maybe_unused]] const ssize_t n = ::write(to_us.get(), &server, sizeof(server));
    while (true) ::pause();
  }
  const absl::Cleanup end_parent = [parent] {
    ::kill(parent, SIGKILL);
    ::waitpid(parent, nullptr, 0);
  };
  far.reset();
  pid_t server = -1;
  ASSERT_EQ(::read(from_parent.get(), &server, sizeof(server)), ssize_t{sizeof(server)});
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, server, 0)));
  ASSERT_TRUE(pidfd.ok());
  Client client(std::move(near));
  ASSERT_EQ(client.Version(), 0);
  ASSERT_EQ(client.Attach(1, 1000), 0);
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(client.Walk(1, 2, {}), 0);
    ASSERT_EQ(client.Create(2, absl::StrCat("f", i), O_RDWR, 0600), 0);
    ASSERT_EQ(client.Clunk(2), 0);
  }
  ::kill(parent, SIGKILL);
  pollfd ended{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&ended, 1, 20000), 1) << "it goes on without its parent";
  ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
}

TEST_F(NinepJailTest, EndsWithItsClient) {
  client_->Close();
  const absl::StatusOr<ExitStatus> exit = process_.WaitBlocking();
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->status, 0U);
}

TEST(NinepProgramTest, SaysWhatItNeeds) {
  auto started = Spawn({.argv = {NINEP}, .env = {}, .descriptors = {}});
  ASSERT_TRUE(started.ok());
  const absl::StatusOr<ExitStatus> exit = started->WaitBlocking();
  ASSERT_TRUE(exit.ok());
  EXPECT_EQ(exit->status, 2U);
}

}  // namespace
}  // namespace magnetar::ninep
