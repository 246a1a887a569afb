#include "src/daemon/sandbox/sizes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/vmm.h"

namespace magnetar::daemon {
namespace {

using runtime::v1::LinuxContainerResources;
using testing::HasSubstr;

Record Booted(uint32_t vcpus, uint64_t memory_mib) {
  Record record;
  record.vcpus = vcpus;
  record.memory_bytes = record.boot_memory_bytes = memory_mib * kMebibyte;
  record.agent_features = {"resize"};
  record.max_vcpus = 8;
  record.max_memory_bytes = 4096 * kMebibyte;
  return record;
}

TEST(SizesTest, SizeFollowsTheLimits) {
  Config config;
  LinuxContainerResources pod;
  EXPECT_EQ(SizeOf(pod, config.vm.size).vcpus, config.vm.size.vcpus);
  EXPECT_EQ(SizeOf(pod, config.vm.size).memory_bytes, config.vm.size.memory_mib << 20);
  pod.set_cpu_quota(250000);
  pod.set_cpu_period(100000);
  pod.set_memory_limit_in_bytes(300 << 20);
  EXPECT_EQ(SizeOf(pod, config.vm.size).vcpus, 3u);
  EXPECT_EQ(SizeOf(pod, config.vm.size).memory_bytes, (300u + config.vm.size.overhead_mib) << 20);
  pod.set_memory_limit_in_bytes(1);
  EXPECT_GE(SizeOf(pod, config.vm.size).memory_bytes, 128u << 20);
}

TEST(SizesTest, AHandlerHasSizesOfItsOwn) {
  Config config;
  Config::Sizing& large = config.handlers["large"];
  large.vcpus = 4;
  large.memory_mib = 2048;
  large.overhead_mib = 512;
  Record record = Booted(1, 512);
  record.container_limits = {{.container_id = "a", .memory_bytes = 600 * kMebibyte}};
  EXPECT_LT(WantedSize(record, config, 0).memory_bytes, 1024 * kMebibyte);
  const uint64_t before = LimitsOf(record, config).memory_bytes;
  record.runtime_handler = "large";
  EXPECT_GE(WantedSize(record, config, 0).memory_bytes, 2048 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 0).vcpus, 4u);
  EXPECT_GT(LimitsOf(record, config).memory_bytes, before);
}

// Pod-level limits: those of the containers may add up to more.
TEST(SizesTest, NoMoreThanTheCgroupAboveHolds) {
  const Config config;
  Record record = Booted(1, 512);
  record.container_limits = {{.container_id = "a", .memory_bytes = 1024 * kMebibyte},
                             {.container_id = "b", .memory_bytes = 1024 * kMebibyte}};
  EXPECT_GT(WantedSize(record, config, 0).memory_bytes, 2048 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 1280 * kMebibyte).memory_bytes, 1024 * kMebibyte);
  // What it has been started with it keeps.
  EXPECT_EQ(WantedSize(record, config, 600 * kMebibyte).memory_bytes, 512 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 1).memory_bytes, 512 * kMebibyte);
  // As much of the overhead as is the guest's is not around it.
  runtime::v1::PodSandboxConfig pod;
  pod.mutable_linux()->mutable_overhead()->set_memory_limit_in_bytes(
      static_cast<int64_t>(320 * kMebibyte));
  record.pod_config = pod.SerializeAsString();
  EXPECT_EQ(WantedSize(record, config, (1024 + 320) * kMebibyte).memory_bytes,
            (1024 + 64) * kMebibyte);
}

TEST(SizesTest, TheCgroupHasRoomForTheVm) {
  const Config config;
  LinuxContainerResources resources;
  EXPECT_EQ(LimitsOf(resources, {}, 512u << 20, config.vm.size).memory_bytes,
            (512u + config.vm.size.overhead_mib + 256u) << 20);
  EXPECT_GT(LimitsOf(resources, {}, 512u << 20, config.vm.size).pids, 0u);
  resources.set_memory_limit_in_bytes(300 << 20);
  EXPECT_EQ(LimitsOf(resources, {}, 364u << 20, config.vm.size).memory_bytes,
            (300u + config.vm.size.overhead_mib + 256u) << 20);
  resources.set_memory_limit_in_bytes(10 << 20);
  EXPECT_EQ(LimitsOf(resources, {}, 364u << 20, config.vm.size).memory_bytes, (364u + 256u) << 20);
  Record growing = Booted(1, 512);
  growing.wanted_memory_bytes = 1024 * kMebibyte;
  EXPECT_GE(LimitsOf(growing, config).memory_bytes, (1024u + 256u) << 20);
}

TEST(SizesTest, LimitsOfASpec) {
  const ContainerLimits limits = LimitsOfSpec(
      "c",
      R"({"linux":{"resources":{"memory":{"limit":1048576},"cpu":{"quota":50000,"period":100000}}}})");
  EXPECT_EQ(limits.container_id, "c");
  EXPECT_EQ(limits.memory_bytes, 1048576u);
  EXPECT_EQ(limits.millicpus, 500u);
  for (const char* none :
       {"", "[]", "{}", R"({"linux":7})", R"({"linux":{"resources":{"memory":{"limit":-1}}}})",
        R"({"linux":{"resources":{"memory":{"limit":"x"},"cpu":{"quota":-1,"period":0}}}})"}) {
    EXPECT_EQ(LimitsOfSpec("c", none).memory_bytes, 0u) << none;
    EXPECT_EQ(LimitsOfSpec("c", none).millicpus, 0u) << none;
  }
}

TEST(SizesTest, GrowsWithItsContainers) {
  const Config config;
  Record record = Booted(1, 512);
  EXPECT_EQ(WantedSize(record, config, 0).memory_bytes, 512 * kMebibyte);
  record.container_limits = {{"a", 300 * kMebibyte, 700}, {"b", 500 * kMebibyte, 700}};
  EXPECT_EQ(WantedSize(record, config, 0).memory_bytes,
            (800 + config.vm.size.overhead_mib) * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 0).vcpus, 2u);
  record.vcpus = 2;
  record.container_limits.clear();
  EXPECT_EQ(WantedSize(record, config, 0).memory_bytes, 512 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 0).vcpus, 2u);
  // No more than it can have, whatever is asked for.
  record.container_limits = {{"a", UINT64_MAX, UINT64_MAX}, {"b", UINT64_MAX, UINT64_MAX}};
  EXPECT_EQ(WantedSize(record, config, 0).memory_bytes, 4096 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 0).vcpus, 8u);
}

TEST(SizesTest, GrowsInStepsThatAGuestCanTake) {
  const Config config;
  Record record = Booted(1, 130);
  record.container_limits = {{"a", 100 * kMebibyte, 0}};
  EXPECT_EQ((WantedSize(record, config, 0).memory_bytes - 130 * kMebibyte) % vmm::kMemoryStep, 0u);
  EXPECT_GE(WantedSize(record, config, 0).memory_bytes,
            (100 + config.vm.size.overhead_mib) * kMebibyte);
}

TEST(SizesTest, AGuestThatDoesNotKnowHowStays) {
  const Config config;
  Record record = Booted(1, 512);
  record.agent_features.clear();
  record.container_limits = {{"a", 1024 * kMebibyte, 5000}};
  EXPECT_EQ(WantedSize(record, config, 0).memory_bytes, 512 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 0).vcpus, 1u);
  LinuxContainerResources pod;
  pod.set_memory_limit_in_bytes(int64_t{1} << 30);
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckFits(record, pod, config)));
}

TEST(SizesTest, AVmThatCannotGrowStays) {
  const Config config;
  Record record = Booted(1, 512);
  record.boot_memory_bytes = record.max_memory_bytes = 0;
  record.max_vcpus = 0;
  record.container_limits = {{"a", 1024 * kMebibyte, 5000}};
  EXPECT_EQ(WantedSize(record, config, 0).memory_bytes, 512 * kMebibyte);
  EXPECT_EQ(WantedSize(record, config, 0).vcpus, 1u);
}

TEST(SizesTest, WhatDoesNotFitIsNamed) {
  const Config config;
  const Record record = Booted(1, 512);
  LinuxContainerResources pod;
  pod.set_memory_limit_in_bytes(int64_t{1} << 30);
  EXPECT_TRUE(CheckFits(record, pod, config).ok());
  pod.set_memory_limit_in_bytes(int64_t{5} << 30);
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckFits(record, pod, config)));
  EXPECT_THAT(CheckFits(record, pod, config).message(), HasSubstr("memory_limit_in_bytes"));
  pod.Clear();
  pod.set_cpu_quota(900000);
  pod.set_cpu_period(100000);
  EXPECT_THAT(CheckFits(record, pod, config).message(), HasSubstr("cpu_quota"));
}

TEST(SizesTest, TheHostOrTheConfigurationSetsTheMost) {
  Config config;
  const MachineSize boot{.vcpus = 1, .memory_bytes = 512 * kMebibyte};
  EXPECT_EQ(LargestSize(boot, config.vm.size, 1000 * kMebibyte).memory_bytes,
            (512 + 384) * kMebibyte);
  EXPECT_EQ(LargestSize(boot, config.vm.size, 100 * kMebibyte).memory_bytes, 512 * kMebibyte);
  config.vm.size.max_memory_mib = 640;
  config.vm.size.max_vcpus = 4;
  EXPECT_EQ(LargestSize(boot, config.vm.size, 4096 * kMebibyte).memory_bytes, 640 * kMebibyte);
  EXPECT_EQ(LargestSize(boot, config.vm.size, 4096 * kMebibyte).vcpus, 4u);
  EXPECT_EQ(LargestSize({.vcpus = 9, .memory_bytes = kMebibyte}, config.vm.size, 0).vcpus, 9u);
}

}  // namespace
}  // namespace magnetar::daemon
