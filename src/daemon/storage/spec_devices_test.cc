// Devices and huge pages: of what is rewritten, what a VM gets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include "src/daemon/storage/spec_rewrite.h"
#include "src/daemon/storage/testing/spec.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(SpecDevicesTest, StandardDevicesAreKept) {
  Json spec = Spec();
  spec["linux"]["devices"] = Json::parse(R"([
    {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 438},
    {"path": "/dev/other-name", "type": "c", "major": 1, "minor": 9},
    {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    {"path": "/dev/initctl", "type": "p"}])");
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["linux"]["devices"], spec["linux"]["devices"]);
}

TEST(SpecDevicesTest, BlockDevicesThatWereAskedFor) {
  Json spec = Spec();
  spec["linux"]["devices"] = Json::parse(R"([
    {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
    {"path": "/dev/xvda", "type": "b", "major": 7, "minor": 3, "fileMode": 432, "gid": 6}])");
  spec["linux"]["resources"]["devices"] = Json::parse(R"([
    {"allow": false, "access": "rwm"},
    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": true, "type": "b", "access": "m"},
    {"allow": true, "type": "b", "major": -1, "minor": -1, "access": "m"},
    {"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rw"}])");
  SpecRequest request = Request();
  request.devices = {{"/dev/sdz", "/dev/other", "rwm"}, {"/dev/loop3", "/dev//xvda", "rw"}};
  Outcome out = Rewrite(spec, request);
  ASSERT_TRUE(out.status.ok()) << out.status;
  ASSERT_EQ(out.result.devices.size(), 1u);
  const BlockDevice& device = out.result.devices[0];
  EXPECT_EQ(device.index, 1u);
  EXPECT_EQ(device.name, "linux.devices[1] /dev/xvda");
  EXPECT_EQ(device.host_path, "/dev/loop3");
  EXPECT_EQ(device.number, ::makedev(7, 3));
  EXPECT_EQ(device.access, "rw");
  EXPECT_FALSE(device.read_only());
  EXPECT_EQ(out.spec["linux"]["devices"][1], Json::parse(R"({"path": "/dev/xvda", "type": "b",
      "major": 0, "minor": 0, "fileMode": 432, "gid": 6})"));
  Json rules = spec["linux"]["resources"]["devices"];
  rules.erase(4);
  EXPECT_EQ(out.spec["linux"]["resources"]["devices"], rules);
  EXPECT_THAT(out.result.dropped, IsEmpty());

  for (const char* access : {"", "x", "rwx", "RW"}) {
    request.devices[1].permissions = access;
    out = Rewrite(spec, request);
    EXPECT_TRUE(absl::IsInvalidArgument(out.status)) << out.status;
    EXPECT_THAT(std::string(out.status.message()),
                HasSubstr("linux.devices[1] /dev/xvda: permissions"));
  }
  request.devices[1].permissions = "rm";
  EXPECT_TRUE(Rewrite(spec, request).result.devices[0].read_only());
}

// Whoever has asked for a device is not told how to get rid of those that nobody did.
TEST(SpecDevicesTest, ACharacterDeviceThatWasAskedFor) {
  Json spec = Spec();
  spec["linux"]["devices"] =
      Json::parse(R"([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}])");
  SpecRequest request = Request();
  request.devices = {{"/dev/fuse", "/dev/fuse", "rwm"}};
  const Outcome out = Rewrite(spec, request);
  EXPECT_EQ(out.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(out.status.message()),
              testing::EndsWith("only block devices can be given to a VM, as disks"));
}

TEST(SpecDevicesTest, HugePages) {
  Json spec = Spec();
  SpecRequest request = Request();
  request.huge_page_limits = {{"1GB", 1 << 30}};
  spec["linux"]["resources"]["hugepageLimits"] = Json::parse(R"([
    {"pageSize": "2MB", "limit": 8388608}, {"pageSize": "1GB", "limit": 0},
    {"pageSize": "64KB", "limit": 9223372036854771712}])");
  Outcome out = Rewrite(spec, request);
  ASSERT_TRUE(out.status.ok()) << out.status;
  ASSERT_EQ(out.result.huge_pages.size(), 1u) << "none of 0, and none without a limit";
  EXPECT_EQ(out.result.huge_pages[0].page_size, 2u << 20);
  EXPECT_EQ(out.result.huge_pages[0].bytes, 8u << 20);
  EXPECT_EQ(out.result.huge_pages[0].field, "linux.resources.hugepageLimits[0] 2MB");

  // containerd leaves them out where the host's kernel has no controller for them.
  spec["linux"]["resources"].erase("hugepageLimits");
  out = Rewrite(spec, request);
  ASSERT_TRUE(out.status.ok()) << out.status;
  ASSERT_EQ(out.result.huge_pages.size(), 1u);
  EXPECT_EQ(out.result.huge_pages[0].page_size, 1u << 30);
  EXPECT_EQ(out.spec["linux"]["resources"]["hugepageLimits"],
            Json::parse(R"([{"pageSize": "1GB", "limit": 1073741824}])"));

  for (const char* size : {"", "MB", "2", "2mb", "0MB", "-2MB", "2xMB", "99999999999GB"}) {
    request.huge_page_limits = {{size, 1}};
    out = Rewrite(spec, request);
    EXPECT_TRUE(absl::IsInvalidArgument(out.status)) << size << out.status;
    EXPECT_THAT(std::string(out.status.message()),
                HasSubstr("linux.resources.hugepageLimits[0]: \""));
  }
}

TEST(SpecDevicesTest, RulesForTheHostsBlockDevicesGo) {
  Json spec = Spec();
  spec["linux"]["resources"]["devices"] =
      Json::parse(R"([{"allow": true, "type": "b", "major": 8, "access": "rwm"}])");
  const Outcome out = Rewrite(spec);
  ASSERT_TRUE(out.status.ok()) << out.status;
  EXPECT_EQ(out.spec["linux"]["resources"]["devices"], Json::array());
  EXPECT_THAT(out.result.dropped, ElementsAre("linux.resources.devices: rules for block devices"));
}

}  // namespace
}  // namespace magnetar::daemon
