// The host's own cgroups, whichever version it has.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "src/daemon/cgroup/layout.h"
#include "src/daemon/cgroup/sandbox_cgroup.h"

namespace magnetar::daemon {
namespace {

class CgroupRootTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    auto mountinfo = ReadFile("/proc/self/mountinfo");
    ASSERT_TRUE(mountinfo.ok());
    auto hierarchies = ParseHierarchies(*mountinfo, "/sys/fs/cgroup");
    if (!hierarchies.ok()) GTEST_SKIP() << hierarchies.status();
    hierarchies_ = *hierarchies;
    for (const Hierarchy& h : hierarchies_) {
      if (::access(h.path.c_str(), W_OK) != 0) GTEST_SKIP() << h.path << " cannot be written";
    }
    auto manager = CreateCgroupManager();
    ASSERT_TRUE(manager.ok()) << manager.status();
    manager_ = *std::move(manager);
    parent_ = absl::StrCat("/magnetar-test-", ::getpid(), "/pod1");
  }
  void TearDown() override {
    if (manager_ == nullptr) return;
    EXPECT_TRUE(manager_->Remove(parent_, "s1").ok());
  }
  bool ExistsAnywhere(const std::string& path) const {
    for (const Hierarchy& h : hierarchies_) {
      if (std::filesystem::exists(h.path + path)) return true;
    }
    return false;
  }
  // A process, and a child of it, inside; they ignore what can be ignored.
  pid_t StartInside(const std::vector<UniqueFd>& procs) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    for (const UniqueFd& fd : procs) {
      if (::write(fd.get(), "0", 1) != 1) ::_exit(1);
    }
    ::signal(SIGTERM, SIG_IGN);
    ::fork();
    while (true) ::pause();
  }

  std::unique_ptr<CgroupManager> manager_;
  std::vector<Hierarchy> hierarchies_;
  std::string parent_;
};

TEST_F(CgroupRootTest, LimitsCountersAndRemoval) {
  auto procs = manager_->Create(parent_, "s1", {.memory_bytes = 64 << 20, .pids = 32});
  ASSERT_TRUE(procs.ok()) << procs.status();
  EXPECT_EQ(procs->size(), hierarchies_.size());
  const pid_t pid = StartInside(*procs);
  ASSERT_GT(pid, 0);
  // Both processes are in once the counter says so.
  for (int i = 0; i < 500; ++i) {
    auto metrics = manager_->Metrics(parent_, "s1");
    ASSERT_TRUE(metrics.ok()) << metrics.status();
    if (metrics->pids().current() == 2) break;
    ::usleep(10000);
  }
  auto metrics = manager_->Metrics(parent_, "s1");
  ASSERT_TRUE(metrics.ok());
  EXPECT_EQ(metrics->pids().current(), 2u);
  EXPECT_EQ(metrics->pids().limit(), 32u);
  EXPECT_EQ(metrics->memory().usage_limit(), 64u << 20);
  EXPECT_GT(metrics->memory().usage(), 0u);

  ASSERT_TRUE(manager_->Update(parent_, "s1", {.memory_bytes = 128 << 20}).ok());
  metrics = manager_->Metrics(parent_, "s1");
  EXPECT_EQ(metrics->memory().usage_limit(), 128u << 20);
  EXPECT_EQ(metrics->pids().limit(), UINT64_MAX);

  absl::Status removed = manager_->Remove(parent_, "s1");
  EXPECT_TRUE(removed.ok()) << removed;
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_FALSE(ExistsAnywhere(parent_));
  EXPECT_FALSE(ExistsAnywhere(parent_.substr(0, parent_.rfind('/'))));
  EXPECT_TRUE(manager_->Remove(parent_, "s1").ok());
}

TEST_F(CgroupRootTest, SomebodyElsesParentStays) {
  std::vector<std::string> foreign;
  for (const Hierarchy& h : hierarchies_) {
    foreign.push_back(h.path + parent_.substr(0, parent_.rfind('/')));
    ASSERT_EQ(::mkdir(foreign.back().c_str(), 0755), 0);
  }
  EXPECT_TRUE(manager_->Create(parent_, "s1", {}).ok());
  EXPECT_TRUE(manager_->Create(parent_, "s1", {}).ok()) << "what a crash left is taken over";
  EXPECT_TRUE(manager_->Remove(parent_, "s1").ok());
  EXPECT_FALSE(ExistsAnywhere(parent_));
  for (const std::string& path : foreign) EXPECT_EQ(::rmdir(path.c_str()), 0) << path;
}

}  // namespace
}  // namespace magnetar::daemon
