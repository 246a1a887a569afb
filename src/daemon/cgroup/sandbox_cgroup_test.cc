#include "src/daemon/cgroup/sandbox_cgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/xattr.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "src/daemon/cgroup/fake_tree.h"
#include "src/daemon/cgroup/held_scopes.h"
#include "src/daemon/cgroup/systemd_scopes.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

class SandboxCgroupTest : public FakeTree {
 protected:
  std::unique_ptr<CgroupManager> Unified() {
    Put("mountinfo", absl::StrCat("30 1 0:26 / ", root_, "/c rw - cgroup2 cgroup2 rw\n"));
    return Manager();
  }
  std::unique_ptr<CgroupManager> UnifiedBesideNetCls() {
    Put("mountinfo", absl::StrCat("30 1 0:26 / ", root_, "/c rw - cgroup2 cgroup2 rw\n31 1 0:27 / ",
                                  root_, "/c/net_cls rw - cgroup cgroup rw,net_cls\n"));
    return Manager();
  }
  std::unique_ptr<CgroupManager> Hybrid() {
    std::string text;
    int device = 30;
    for (const char* c : {"cpu", "memory", "pids", "cpuset", "devices"}) {
      ++device;
      absl::StrAppend(&text, device, " 1 0:", device, " / ", root_, "/c/", c,
                      " rw - cgroup cgroup rw,", c, "\n");
    }
    absl::StrAppend(&text, "40 1 0:40 / ", root_, "/c/unified rw - cgroup2 cgroup2 rw\n");
    Put("mountinfo", text);
    return Manager();
  }
  // What a kernel would put into a new cgroup.
  void PutV1(const std::string& path) {
    for (const char* c : {"cpu", "memory", "pids", "cpuset", "devices", "unified"}) {
      Put(absl::StrCat("c/", c, "/", path, "/cgroup.procs"));
    }
    for (const char* file : {"cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"}) {
      Put(absl::StrCat("c/cpu/", path, "/", file));
    }
    Put(absl::StrCat("c/memory/", path, "/memory.limit_in_bytes"));
    Put(absl::StrCat("c/cpuset/", path, "/cpuset.cpus"));
    Put(absl::StrCat("c/cpuset/", path, "/cpuset.mems"));
  }

  std::shared_ptr<SystemdScopes> scopes_;

 private:
  std::unique_ptr<CgroupManager> Manager() {
    auto manager = CreateCgroupManager({.mount_point = Path("c"),
                                        .mountinfo = Path("mountinfo"),
                                        .kill_limit = std::chrono::seconds(2),
                                        .systemd_directory = Path("systemd"),
                                        .scopes = scopes_});
    EXPECT_TRUE(manager.ok()) << manager.status();
    return manager.ok() ? *std::move(manager) : nullptr;
  }
};

TEST_F(SandboxCgroupTest, HybridWritesWhereTheControllerIs) {
  auto manager = Hybrid();
  Put("c/cpuset/cpuset.cpus", "0-3\n");
  Put("c/cpuset/cpuset.mems", "0\n");
  PutV1("kubepods/pod1");
  PutV1("kubepods/pod1/magnetar-s1");
  Put("c/cpuset/kubepods/cpuset.cpus", "\n");
  Put("c/cpuset/kubepods/cpuset.mems", "0\n");
  auto procs = manager->Create("/kubepods/pod1", "s1",
                               {.memory_bytes = 4096, .cpu_quota_us = 1000, .pids = 10});
  ASSERT_TRUE(procs.ok()) << procs.status();
  EXPECT_EQ(procs->size(), 6u);
  EXPECT_EQ(Get("c/memory/kubepods/pod1/magnetar-s1/memory.limit_in_bytes"), "4096");
  EXPECT_EQ(Get("c/cpu/kubepods/pod1/magnetar-s1/cpu.cfs_quota_us"), "1000");
  EXPECT_EQ(Get("c/cpu/kubepods/pod1/magnetar-s1/cpu.cfs_period_us"), "100000");
  EXPECT_EQ(Get("c/cpu/kubepods/pod1/magnetar-s1/cpu.shares"), "");
  EXPECT_EQ(Get("c/cpuset/kubepods/cpuset.cpus"), "0-3");
  EXPECT_EQ(Get("c/cpuset/kubepods/pod1/magnetar-s1/cpuset.cpus"), "0-3");
  EXPECT_EQ(Get("c/cpuset/kubepods/pod1/magnetar-s1/cpuset.mems"), "0");

  ASSERT_TRUE(manager->Update("/kubepods/pod1", "s1", {.cpu_shares = 7}).ok());
  EXPECT_THAT(Get("c/memory/kubepods/pod1/magnetar-s1/memory.limit_in_bytes"), HasSubstr("-1"));
}

TEST_F(SandboxCgroupTest, UnifiedEnablesControllersForTheChildren) {
  auto manager = Unified();
  Put("c/cgroup.controllers", "cpuset cpu io memory pids\n");
  Put("c/cgroup.subtree_control", "cpu memory pids\n");
  for (const char* path : {"kubepods.slice", "kubepods.slice/kubepods-pod1.slice"}) {
    Put(absl::StrCat("c/", path, "/cgroup.controllers"), "cpu memory\n");
    Put(absl::StrCat("c/", path, "/cgroup.subtree_control"), "memory\n");
  }
  const std::string leaf = "c/kubepods.slice/kubepods-pod1.slice/magnetar-s1";
  for (const char* file : {"cgroup.procs", "memory.max", "cpu.weight"}) Put(leaf + "/" + file);
  auto procs =
      manager->Create("kubepods-pod1.slice", "s1", {.memory_bytes = 4096, .cpu_shares = 1024});
  ASSERT_TRUE(procs.ok()) << procs.status();
  EXPECT_EQ(procs->size(), 1u);
  EXPECT_EQ(Get(leaf + "/memory.max"), "4096");
  EXPECT_EQ(Get(leaf + "/cpu.weight"), "39");
  EXPECT_THAT(Get("c/cgroup.subtree_control"), HasSubstr("+io"));
  EXPECT_THAT(Get("c/kubepods.slice/cgroup.subtree_control"), HasSubstr("+cpu"));

  // pids is not delegated to this slice.
  absl::Status status = manager->Create("kubepods-pod1.slice", "s2", {.pids = 5}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pids"));
  EXPECT_FALSE(Exists("c/kubepods.slice/kubepods-pod1.slice/magnetar-s2"));
}

TEST_F(SandboxCgroupTest, AHierarchyOfV1BesideV2KeepsLimitsAndCounters) {
  Put("c/cgroup.controllers", "cpu io memory pids\n");
  Put("c/cgroup.subtree_control", "cpu io memory pids\n");
  auto manager = UnifiedBesideNetCls();
  ASSERT_NE(manager, nullptr);
  Put("c/kubepods/cgroup.controllers", "cpu io memory pids\n");
  Put("c/kubepods/cgroup.subtree_control", "cpu io memory pids\n");
  const std::string leaf = "c/kubepods/magnetar-s1";
  for (const char* file : {"cgroup.procs", "memory.max", "pids.max"}) Put(leaf + "/" + file);
  Put(leaf + "/memory.current", "4711\n");
  Put("c/net_cls/kubepods/magnetar-s1/cgroup.procs");
  auto procs = manager->Create("/kubepods", "s1", {.memory_bytes = 4096, .pids = 5});
  ASSERT_TRUE(procs.ok()) << procs.status();
  EXPECT_EQ(procs->size(), 2u);
  EXPECT_EQ(Get(leaf + "/memory.max"), "4096");
  EXPECT_EQ(Get(leaf + "/pids.max"), "5");
  auto metrics = manager->Metrics("/kubepods", "s1");
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_EQ(metrics->memory().usage(), 4711u);
}

// Makes what systemd and the kernel would make in the fake tree.
class FakeScopes final : public SystemdScopes {
 public:
  explicit FakeScopes(std::function<absl::Status(const std::string&)> make)
      : make_(std::move(make)) {}
  absl::Status Start(const std::string& scope, const std::string& slice, pid_t pid) override {
    log.push_back("start " + scope + " in " + slice);
    holder = pid;
    return make_(scope);
  }
  absl::Status Stop(const std::string& scope) override {
    log.push_back("stop " + scope);
    return absl::OkStatus();
  }
  std::vector<std::string> log;
  pid_t holder = 0;

 private:
  std::function<absl::Status(const std::string&)> make_;
};

TEST_F(SandboxCgroupTest, ASliceOfSystemdGetsADelegatedScope) {
  const std::string top = "c/kubepods.slice/kubepods-pod1.slice/magnetar-s1.scope";
  auto scopes = std::make_shared<FakeScopes>([&](const std::string&) {
    for (const char* above : {"c", "c/kubepods.slice", "c/kubepods.slice/kubepods-pod1.slice"}) {
      Put(absl::StrCat(above, "/cgroup.controllers"), "cpu memory pids io\n");
      Put(absl::StrCat(above, "/cgroup.subtree_control"), "cpu memory pids io\n");
    }
    Put(top + "/cgroup.controllers", "cpu memory pids io\n");
    Put(top + "/cgroup.subtree_control");
    Put(top + "/vm/cgroup.procs");
    Put(top + "/vm/memory.max");
    return absl::OkStatus();
  });
  scopes_ = scopes;
  Put("systemd/here");
  auto manager = Unified();
  auto procs = manager->Create("kubepods-pod1.slice", "s1", {.memory_bytes = 4096});
  ASSERT_TRUE(procs.ok()) << procs.status();
  EXPECT_EQ(Get(top + "/vm/cgroup.procs"), absl::StrCat(scopes->holder));
  EXPECT_EQ(Get(top + "/vm/memory.max"), "4096");
  EXPECT_THAT(Get(top + "/cgroup.subtree_control"), HasSubstr("+"));
  EXPECT_EQ(::kill(scopes->holder, 0), 0);
  // In the fake tree the files would keep the directories.
  for (const char* file : {"/cgroup.controllers", "/cgroup.subtree_control", "/vm/memory.max"}) {
    std::filesystem::remove(Path(top + file));
  }
  absl::Status removed = manager->Remove("kubepods-pod1.slice", "s1");
  EXPECT_FALSE(removed.ok()) << "cgroup.procs is a file of the fake";
  EXPECT_EQ(::kill(scopes->holder, 0), -1) << "the holder is killed and reaped";
  std::filesystem::remove(Path(top + "/vm/cgroup.procs"));
  removed = manager->Remove("kubepods-pod1.slice", "s1");
  EXPECT_TRUE(removed.ok()) << removed;
  EXPECT_FALSE(Exists(top));
  EXPECT_EQ(scopes->log[0], "start magnetar-s1.scope in kubepods-pod1.slice");
  EXPECT_EQ(scopes->log[1], "stop magnetar-s1.scope");
}

TEST_F(SandboxCgroupTest, AScopesHolderIsNotShieldedFromTheOomKillerAsTheDaemonIs) {
  const char kOwn[] = "/proc/self/oom_score_adj";
  auto before = ReadFile(kOwn);
  ASSERT_TRUE(before.ok());
  if (!WriteExisting(kOwn, "-500").ok()) GTEST_SKIP() << "needs CAP_SYS_RESOURCE";
  std::string seen;
  FakeScopes* fake = nullptr;
  auto scopes = std::make_shared<FakeScopes>([&](const std::string&) {
    seen = ReadFile(absl::StrCat("/proc/", fake->holder, "/oom_score_adj")).value_or("none");
    return absl::UnavailableError("enough");
  });
  fake = scopes.get();
  HeldScopes held(scopes);
  EXPECT_FALSE(held.Start("magnetar-s1.scope", "a.slice").ok());
  EXPECT_TRUE(WriteExisting(kOwn, *before).ok());
  EXPECT_EQ(seen, "0\n");
}

TEST_F(SandboxCgroupTest, AScopeThatSystemdRefusesLeavesNothing) {
  auto scopes = std::make_shared<FakeScopes>(
      [](const std::string&) { return absl::UnavailableError("systemd says no"); });
  scopes_ = scopes;
  Put("systemd/here");
  Put("c/cgroup.controllers");
  auto manager = Unified();
  absl::Status status = manager->Create("kubepods-pod1.slice", "s1", {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(::kill(scopes->holder, 0), -1);
  EXPECT_FALSE(Exists("c/kubepods.slice"));
}

TEST_F(SandboxCgroupTest, RemoveTakesItsOwnParentsAndLeavesOthers) {
  auto manager = Unified();
  Put("c/kubepods/cgroup.marker");
  // Fails for want of cgroup.procs, and so undoes what it made.
  EXPECT_FALSE(manager->Create("/kubepods/pod1", "s1", {}).ok());
  EXPECT_FALSE(Exists("c/kubepods/pod1/magnetar-s1"));
  EXPECT_TRUE(Exists("c/kubepods"));
  char probe[2];
  ::setxattr(Path("c").c_str(), "trusted.probe", "1", 1, 0);
  if (::getxattr(Path("c").c_str(), "trusted.probe", probe, sizeof(probe)) == 1) {
    EXPECT_FALSE(Exists("c/kubepods/pod1"));
  }
  EXPECT_TRUE(manager->Remove("/kubepods/pod1", "s1").ok());
}

TEST_F(SandboxCgroupTest, TheLeastMemoryAbove) {
  auto manager = Unified();
  Put("c/kubepods/memory.max", "9000\n");
  Put("c/kubepods/pod1/memory.max", "max\n");
  Put("c/kubepods/pod1/magnetar-s1/memory.max", "10\n");
  EXPECT_EQ(*manager->MemoryLimitAbove("/kubepods/pod1", "s1"), 9000u);
  Put("c/kubepods/pod1/memory.max", "8000\n");
  EXPECT_EQ(*manager->MemoryLimitAbove("/kubepods/pod1", "s1"), 8000u);
  EXPECT_EQ(*manager->MemoryLimitAbove("/other", "s1"), 0u);
  EXPECT_TRUE(absl::IsInvalidArgument(manager->MemoryLimitAbove("/../x", "s1").status()));

  manager = Hybrid();
  Put("c/memory/kubepods/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(*manager->MemoryLimitAbove("/kubepods/pod1", "s1"), 0u);
  Put("c/memory/kubepods/pod1/memory.limit_in_bytes", "7000\n");
  EXPECT_EQ(*manager->MemoryLimitAbove("/kubepods/pod1", "s1"), 7000u);
}

TEST_F(SandboxCgroupTest, MetricsOfNoneIsNotFound) {
  auto manager = Unified();
  EXPECT_TRUE(absl::IsNotFound(manager->Metrics("/kubepods/pod1", "s1").status()));
  EXPECT_TRUE(absl::IsNotFound(manager->Update("/kubepods/pod1", "s1", {})));
  EXPECT_TRUE(absl::IsInvalidArgument(manager->Create("/../x", "s1", {}).status()));
  EXPECT_TRUE(manager->Remove("/../x", "s1").ok());
}

TEST_F(SandboxCgroupTest, NoCgroupsIsAnError) {
  Put("mountinfo", "");
  EXPECT_TRUE(absl::IsFailedPrecondition(
      CreateCgroupManager({.mount_point = Path("c"), .mountinfo = Path("mountinfo")}).status()));
}

}  // namespace
}  // namespace magnetar::daemon
