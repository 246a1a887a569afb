#include "src/daemon/sandbox/size_annotations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace magnetar::daemon {
namespace {

using testing::HasSubstr;

constexpr char kVcpus[] = "io.magnetar.vm.vcpus";
constexpr char kMemory[] = "io.magnetar.vm.memory_mib";

runtime::v1::PodSandboxConfig Pod(const std::string& annotation, const std::string& value) {
  runtime::v1::PodSandboxConfig pod;
  (*pod.mutable_annotations())[annotation] = value;
  return pod;
}

Config::Sizing Generous() {
  Config::Sizing sizing;
  sizing.annotations = {"vcpus", "memory_mib"};
  return sizing;
}

TEST(SizeAnnotationsTest, AskForAtLeastSoMuch) {
  auto pod = Pod(kVcpus, "3");
  (*pod.mutable_annotations())[kMemory] = "1023";
  const auto asked = AskedSize(pod, Generous(), 4096 * kMebibyte);
  ASSERT_TRUE(asked.ok()) << asked.status();
  EXPECT_EQ(asked->vcpus, 3u);
  EXPECT_EQ(asked->memory_bytes, 1024 * kMebibyte);
  const MachineSize larger = LargerOf({.vcpus = 4, .memory_bytes = 512 * kMebibyte}, *asked);
  EXPECT_EQ(larger.vcpus, 4u);
  EXPECT_EQ(larger.memory_bytes, 1024 * kMebibyte);
}

TEST(SizeAnnotationsTest, NothingIsAskedFor) {
  const auto asked = AskedSize(Pod("io.magnetar.other", "x"), {}, 0);
  ASSERT_TRUE(asked.ok()) << asked.status();
  EXPECT_EQ(asked->vcpus, 0u);
  EXPECT_EQ(asked->memory_bytes, 0u);
}

TEST(SizeAnnotationsTest, OnlyWhatIsAllowed) {
  Config::Sizing sizing;
  sizing.annotations = {"vcpus"};
  EXPECT_TRUE(AskedSize(Pod(kVcpus, "2"), sizing, 4096 * kMebibyte).ok());
  const auto denied = AskedSize(Pod(kMemory, "256"), sizing, 4096 * kMebibyte);
  EXPECT_TRUE(absl::IsPermissionDenied(denied.status()));
  EXPECT_THAT(std::string(denied.status().message()), HasSubstr(kMemory));
}

TEST(SizeAnnotationsTest, Nonsense) {
  for (const char* value : {"", "0", "-1", "+2", " 2", "2 ", "1.5", "9", "two", "0x2", "2\n",
                            "99999999999999999999999"}) {
    const auto asked = AskedSize(Pod(kVcpus, value), Generous(), 4096 * kMebibyte);
    EXPECT_TRUE(absl::IsInvalidArgument(asked.status())) << value;
    EXPECT_THAT(std::string(asked.status().message()), HasSubstr(kVcpus));
  }
  for (const char* value : {"127", "4097", "18446744073709551615"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        AskedSize(Pod(kMemory, value), Generous(), 4096 * kMebibyte).status()))
        << value;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      AskedSize(Pod("io.magnetar.vm.kernel", "/x"), Generous(), 4096 * kMebibyte).status()));
}

TEST(SizeAnnotationsTest, NoMoreThanAPodMayGrowTo) {
  Config::Sizing sizing = Generous();
  sizing.max_memory_mib = 1024;
  sizing.max_vcpus = 2;
  EXPECT_TRUE(AskedSize(Pod(kMemory, "1024"), sizing, 4096 * kMebibyte).ok());
  EXPECT_FALSE(AskedSize(Pod(kMemory, "1025"), sizing, 4096 * kMebibyte).ok());
  EXPECT_TRUE(AskedSize(Pod(kVcpus, "2"), sizing, 4096 * kMebibyte).ok());
  EXPECT_FALSE(AskedSize(Pod(kVcpus, "3"), sizing, 4096 * kMebibyte).ok());
}

}  // namespace
}  // namespace magnetar::daemon
