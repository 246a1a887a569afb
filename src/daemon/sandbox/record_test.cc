#include "src/daemon/sandbox/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "magnetar/files.h"

namespace magnetar::daemon {
namespace {

Record Sample() {
  Record record;
  record.id = "abc";
  record.containerd_namespace = "k8s.io";
  record.state = "ready";
  record.pod_config = std::string("\x00\xff\n\"bytes", 9);
  record.netns_path = "/var/run/netns/x";
  record.cgroup_parent = "/kubepods/pod1";
  record.vmm = "qemu";
  record.file_share = "9p";
  record.agent_protocol = 1;
  record.agent_features = {"x"};
  record.uid = 1900000001;
  record.vcpus = 2;
  record.memory_bytes = 512 << 20;
  record.vmm_pid = 42;
  record.created_at_ns = 1790000000123456789;
  record.exit_status = 137;
  record.exit_reason = "qemu: killed";
  record.processes = {{"qemu", {42, 4711, "boot"}, true}};
  record.steps = {Step::kDirectory, Step::kCgroup, Step::kGuest};
  record.container_steps = {{"disk", "c1", "", "/dev/loop1", "mgt-1"}};
  record.nics = {{3, 9, "net1", "02:00:00:00:00:01", 1400, true}};
  return record;
}

TEST(RecordTest, RoundTrip) {
  const Record before = Sample();
  const auto after = RecordFromJson(RecordToJson(before));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->pod_config, before.pod_config);
  EXPECT_EQ(after->created_at_ns, before.created_at_ns);
  EXPECT_EQ(after->steps, before.steps);
  EXPECT_EQ(after->file_share, "9p");
  EXPECT_EQ(after->agent_protocol, 1u);
  EXPECT_EQ(after->agent_features, before.agent_features);
  ASSERT_EQ(after->processes.size(), 1u);
  EXPECT_EQ(after->processes[0].identity, before.processes[0].identity);
  EXPECT_TRUE(after->processes[0].vmm);
  ASSERT_EQ(after->container_steps.size(), 1u);
  EXPECT_EQ(after->container_steps[0].serial, "mgt-1");
  ASSERT_EQ(after->nics.size(), 1u);
  EXPECT_EQ(after->nics[0].slot, 3u);
  EXPECT_EQ(after->nics[0].interface, 9);
  EXPECT_EQ(after->nics[0].name, "net1");
  EXPECT_TRUE(after->nics[0].plugged);
  EXPECT_EQ(RecordToJson(*after), RecordToJson(before));
}

TEST(RecordTest, WhatHasNoFileShareIsOfADaemonThatKnewOne) {
  const auto record = RecordFromJson(R"({"schema":1,"id":"a"})");
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->file_share, "virtiofs");
}

TEST(RecordTest, UnknownKeysAreForLaterDaemons) {
  EXPECT_TRUE(RecordFromJson(R"({"schema":1,"id":"a","later":[1]})").ok());
}

TEST(RecordTest, RefusesWhatIsNoRecord) {
  EXPECT_TRUE(absl::IsDataLoss(RecordFromJson("").status()));
  EXPECT_TRUE(absl::IsDataLoss(RecordFromJson("[]").status()));
  EXPECT_TRUE(absl::IsDataLoss(RecordFromJson(R"({"schema":1})").status()));
  EXPECT_TRUE(absl::IsDataLoss(RecordFromJson(R"({"schema":1,"id":7})").status()));
  EXPECT_TRUE(
      absl::IsDataLoss(RecordFromJson(R"({"id":"a","schema":1,"pod_config":"*"})").status()));
  EXPECT_TRUE(absl::IsUnimplemented(RecordFromJson(R"({"schema":2,"id":"a"})").status()));
}

TEST(RecordTest, FileKeepsTheJournal) {
  char directory[] = "/tmp/mgtr.XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  EXPECT_TRUE(absl::IsNotFound(ReadRecord(directory).status()));
  RecordFile file(directory, Sample());
  ASSERT_TRUE(file.AddStep(Step::kNetwork).ok());
  ASSERT_TRUE(file.AddStep(Step::kNetwork).ok());
  ASSERT_TRUE(file.RemoveStep(Step::kCgroup).ok());
  const auto read = ReadRecord(directory);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->steps, testing::ElementsAre(Step::kDirectory, Step::kGuest, Step::kNetwork));
  ASSERT_TRUE(RemoveTree(directory).ok());
}

}  // namespace
}  // namespace magnetar::daemon
