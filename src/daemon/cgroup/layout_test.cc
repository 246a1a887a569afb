#include "src/daemon/cgroup/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kHybrid[] =
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup "
    "rw,xattr,release_agent=/lib/systemd/agent,name=systemd\n"
    "35 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
    "36 31 0:39 / /sys/fs/cgroupless/memory rw - cgroup cgroup rw,memory\n"
    "37 31 0:40 / /proc rw - proc proc rw\n"
    "broken line\n";

TEST(ParseHierarchiesTest, Hybrid) {
  auto hierarchies = ParseHierarchies(kHybrid, "/sys/fs/cgroup");
  ASSERT_TRUE(hierarchies.ok()) << hierarchies.status();
  EXPECT_THAT(*hierarchies,
              ElementsAre(Hierarchy{"/sys/fs/cgroup/cpu,cpuacct", false, {"cpu", "cpuacct"}},
                          Hierarchy{"/sys/fs/cgroup/systemd", false, {"name=systemd"}},
                          Hierarchy{"/sys/fs/cgroup/unified", true, {}}));
}

TEST(ParseHierarchiesTest, Unified) {
  auto hierarchies = ParseHierarchies(
      "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
      "/sys/fs/cgroup");
  ASSERT_TRUE(hierarchies.ok());
  EXPECT_THAT(*hierarchies, ElementsAre(Hierarchy{"/sys/fs/cgroup", true, {}}));
}

TEST(ParseHierarchiesTest, EscapedMountPoint) {
  auto hierarchies = ParseHierarchies("30 23 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n", "/a b");
  ASSERT_TRUE(hierarchies.ok());
  EXPECT_EQ((*hierarchies)[0].path, "/a b");
}

TEST(ParseHierarchiesTest, NoneIsAnError) {
  EXPECT_TRUE(absl::IsFailedPrecondition(ParseHierarchies(kHybrid, "/elsewhere").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(ParseHierarchies("", "/sys/fs/cgroup").status()));
}

std::vector<std::string> AssignedToV2(absl::string_view listed, std::vector<Hierarchy> v1) {
  v1.push_back({"/sys/fs/cgroup", true, {}});
  AssignControllers(listed, v1);
  return v1.back().controllers;
}

TEST(AssignControllersTest, EachControllerIsInOneHierarchy) {
  // Alone, whatever its root lists: a limit that it cannot have is refused, not dropped.
  EXPECT_THAT(AssignedToV2("cpuset memory\n", {}), ElementsAre("cpu", "memory", "pids", "io"));
  // A hierarchy of v1 that has none of ours changes nothing.
  EXPECT_THAT(AssignedToV2("cpuset cpu io memory pids rdma\n",
                           {{"/sys/fs/cgroup/systemd", false, {"name=systemd"}},
                            {"/run/net_cls", false, {"net_cls", "net_prio"}}}),
              ElementsAre("cpu", "memory", "pids", "io"));
  // One that has some takes them.
  EXPECT_THAT(AssignedToV2("io pids\n", {{"/c/cpu", false, {"cpu", "cpuacct"}},
                                         {"/c/memory", false, {"memory"}}}),
              ElementsAre("pids", "io"));
  EXPECT_THAT(AssignedToV2("cpu memory pids\n", {{"/c/blkio", false, {"blkio"}}}),
              ElementsAre("cpu", "memory", "pids"));
  // A hybrid host's v2 is there for processes only.
  EXPECT_THAT(AssignedToV2("misc\n", {{"/c/cpu", false, {"cpu", "cpuacct"}}}), IsEmpty());
  EXPECT_THAT(AssignedToV2("", {{"/c/cpu", false, {"cpu", "cpuacct"}}}), IsEmpty());
}

TEST(ParentPathTest, Forms) {
  const std::pair<const char*, const char*> kCases[] = {
      {"", "magnetar"},
      {"/", "magnetar"},
      {"/kubepods/burstable/pod1", "kubepods/burstable/pod1"},
      {"kubepods/pod1/", "kubepods/pod1"},
      {"system.slice", "system.slice"},
      {"-.slice", ""},
      {"kubepods-besteffort-pod1_2.slice",
       "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"},
      // As the kubelet hands it over: expanded already.
      {"/kubepods.slice/kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice"}};
  for (const auto& [parent, path] : kCases) {
    auto result = ParentPath(parent);
    ASSERT_TRUE(result.ok()) << parent << ": " << result.status();
    EXPECT_EQ(*result, path) << parent;
  }
}

TEST(ParentPathTest, RefusesWhatLeavesTheTree) {
  for (const char* parent :
       {"..", "/a/../../b", "a//b", "./a", "a--b.slice", "-a.slice", ".slice"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParentPath(parent).status())) << parent;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParentPath(std::string(300, 'a')).status()));
}

TEST(PlaceSandboxTest, PlainCgroups) {
  for (bool systemd : {false, true}) {
    auto place = PlaceSandbox("/kubepods/pod1", "abc", systemd);
    ASSERT_TRUE(place.ok()) << place.status();
    EXPECT_EQ(place->path, "kubepods/pod1/magnetar-abc");
    EXPECT_EQ(place->top, place->path);
    EXPECT_EQ(place->scope, "");
  }
  EXPECT_EQ(PlaceSandbox("-.slice", "abc", false)->path, "magnetar-abc");
  EXPECT_EQ(PlaceSandbox("", "abc", false)->path, "magnetar/magnetar-abc");
}

TEST(PlaceSandboxTest, ScopesInSystemdsSlices) {
  auto place = PlaceSandbox("kubepods-pod1.slice", "abc", true);
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_EQ(place->path, "kubepods.slice/kubepods-pod1.slice/magnetar-abc.scope/vm");
  EXPECT_EQ(place->top, "kubepods.slice/kubepods-pod1.slice/magnetar-abc.scope");
  EXPECT_EQ(place->scope, "magnetar-abc.scope");
  EXPECT_EQ(place->slice, "kubepods-pod1.slice");
  EXPECT_EQ(PlaceSandbox("/kubepods.slice/kubepods-pod1.slice", "abc", true)->slice,
            "kubepods-pod1.slice");
  EXPECT_EQ(PlaceSandbox("", "abc", true)->path, "magnetar.slice/magnetar-abc.scope/vm");
  EXPECT_EQ(PlaceSandbox("-.slice", "abc", true)->top, "magnetar-abc.scope");
  EXPECT_EQ(PlaceSandbox("-.slice", "abc", true)->slice, "-.slice");
}

TEST(PlaceSandboxTest, RefusesIdsThatAreNone) {
  EXPECT_TRUE(absl::IsInvalidArgument(PlaceSandbox("/kubepods", "../x", false).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(PlaceSandbox("/kubepods", "", true).status()));
}

}  // namespace
}  // namespace magnetar::daemon
