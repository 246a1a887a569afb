#include "magnetar/guest_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace magnetar {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ReduceResourcesTest, KeepsWhatAGuestCanDo) {
  Json resources = Json::parse(R"({
    "devices": [{"allow": false, "access": "rwm"}],
    "memory": {"limit": 134217728, "swap": 134217728, "swappiness": 60, "kernel": 1,
               "disableOOMKiller": false, "checkBeforeUpdate": true, "useHierarchy": true},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "2-3", "mems": "0"},
    "pids": {"limit": 100},
    "blockIO": {"weight": 10},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 1073741824}],
    "unified": {"memory.high": "1000000", "cpu.weight": "7", "cpuset.cpus": "2", "io.max": "x",
                "hugetlb.2MB.max": "0", "rdma.max": "max", "cgroup.freeze": "1"}})");
  std::vector<std::string> dropped;
  ASSERT_TRUE(ReduceResources(resources, dropped).ok());
  EXPECT_EQ(resources, Json::parse(R"({
    "devices": [{"allow": false, "access": "rwm"}],
    "memory": {"limit": 134217728, "swap": 134217728},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000},
    "pids": {"limit": 100},
    "hugepageLimits": [{"pageSize": "1GB", "limit": 1073741824}],
    "unified": {"memory.high": "1000000", "cpu.weight": "7"}})"));
  EXPECT_THAT(
      dropped,
      ElementsAre("linux.resources.blockIO", "linux.resources.memory.kernel",
                  "linux.resources.memory.swappiness", "linux.resources.memory.disableOOMKiller",
                  "linux.resources.memory.useHierarchy", "linux.resources.memory.checkBeforeUpdate",
                  "linux.resources.cpu.cpus", "linux.resources.cpu.mems",
                  "linux.resources.unified.cgroup.freeze", "linux.resources.unified.cpuset.cpus",
                  "linux.resources.unified.hugetlb.2MB.max", "linux.resources.unified.io.max",
                  "linux.resources.unified.rdma.max"));
}

TEST(ReduceResourcesTest, WhatSaysNothingIsNotMentioned) {
  Json resources = {{"cpu", {{"cpus", ""}, {"mems", ""}}}, {"unified", Json::object()}};
  std::vector<std::string> dropped;
  ASSERT_TRUE(ReduceResources(resources, dropped).ok());
  EXPECT_EQ(resources, Json({{"cpu", Json::object()}}));
  EXPECT_THAT(dropped, IsEmpty());
}

TEST(ReduceResourcesTest, TextOfAnUpdate) {
  const auto reduced = ReducedResources(
      R"({"cpu":{"cpus":"6-7","shares":2},"devices":[{"allow":false,"access":"rwm"}]})");
  ASSERT_TRUE(reduced.ok()) << reduced.status();
  EXPECT_EQ(*reduced, R"({"cpu":{"shares":2}})");
  for (const char* text :
       {"", "[]", "nonsense", R"({"cpu":1})", R"({"unified":[]})", R"({"hugepageLimits":[1]})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ReducedResources(text).status())) << text;
  }
}

TEST(ReduceProcessTest, TextOfAnExec) {
  const auto reduced = ReducedProcess(
      R"({"apparmorProfile":"cri-containerd.apparmor.d","args":["true"],"selinuxLabel":"x"})");
  ASSERT_TRUE(reduced.ok()) << reduced.status();
  EXPECT_EQ(*reduced, R"({"args":["true"]})");
  EXPECT_TRUE(absl::IsInvalidArgument(ReducedProcess("7").status()));
}

}  // namespace
}  // namespace magnetar
