#include "src/daemon/storage/rootfs_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/daemon/storage/mount_calls.h"

namespace magnetar::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

containerd::types::Mount Mount(const std::string& type, const std::string& source,
                               const std::vector<std::string>& options) {
  containerd::types::Mount mount;
  mount.set_type(type);
  mount.set_source(source);
  for (const std::string& option : options) mount.add_options(option);
  return mount;
}

TEST(RootfsPlanTest, Overlay) {
  const auto plan = PlanRootfs(
      {Mount("overlay", "overlay", {"index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a"})});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kind, RootfsPlan::Kind::kOverlay);
  EXPECT_FALSE(plan->read_only);
  EXPECT_THAT(plan->options,
              ElementsAre("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a"));
}

TEST(RootfsPlanTest, NativeSnapshotter) {
  const auto plan = PlanRootfs({Mount("bind", "/snapshots/7", {"rbind", "ro"})});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kind, RootfsPlan::Kind::kBind);
  EXPECT_EQ(plan->source, "/snapshots/7");
  EXPECT_TRUE(plan->recursive);
  EXPECT_TRUE(plan->read_only);
}

TEST(RootfsPlanTest, Blockfile) {
  const auto plan = PlanRootfs({Mount("ext4", "/blockfile/snapshots/3", {"loop", "rw"})});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kind, RootfsPlan::Kind::kDisk);
  EXPECT_EQ(plan->fstype, "ext4");
  EXPECT_FALSE(plan->read_only);
  EXPECT_THAT(plan->options, IsEmpty());
}

TEST(RootfsPlanTest, Devmapper) {
  const auto plan = PlanRootfs({Mount("ext4", "/dev/mapper/pool-snap-1", {"noload"})});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kind, RootfsPlan::Kind::kDisk);
  EXPECT_THAT(plan->options, ElementsAre("noload"));
}

TEST(RootfsPlanTest, ErofsIsReadOnly) {
  const auto plan = PlanRootfs({Mount("erofs", "/layer.erofs", {"loop"})});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->read_only);
}

TEST(RootfsPlanTest, Refusals) {
  struct Case {
    std::vector<containerd::types::Mount> mounts;
    absl::StatusCode code;
    const char* message;
  };
  const Case cases[] = {
      {{}, absl::StatusCode::kFailedPrecondition, "no mounts"},
      {{Mount("zfs", "pool/x", {})}, absl::StatusCode::kInvalidArgument, "\"zfs\" is not known"},
      {{Mount("xfs", "/dev/mapper/x", {"nouuid"})},
       absl::StatusCode::kFailedPrecondition,
       "ext4 and erofs for disks, not xfs"},
      {{Mount("", "/x", {})}, absl::StatusCode::kInvalidArgument, "not known"},
      {{Mount("erofs", "/layer.erofs", {"ro", "loop"}),
        Mount("format/mkdir/overlay", "overlay", {})},
       absl::StatusCode::kFailedPrecondition,
       "[erofs,format/mkdir/overlay]"},
      {{Mount("bind", "/a", {}), Mount("bind", "/b", {})},
       absl::StatusCode::kFailedPrecondition,
       "[bind,bind]"},
      {{Mount("erofs", "/fsmeta.erofs", {"device=/a"})},
       absl::StatusCode::kFailedPrecondition,
       "device"},
      {{Mount("bind", "relative", {})}, absl::StatusCode::kInvalidArgument, "absolute"},
      {{Mount("ext4", "", {"loop"})}, absl::StatusCode::kInvalidArgument, "absolute"},
      {{Mount("overlay", "overlay", {"upperdir=/u"})}, absl::StatusCode::kInvalidArgument, "lower"},
  };
  for (const Case& c : cases) {
    const auto plan = PlanRootfs(c.mounts);
    EXPECT_EQ(plan.status().code(), c.code) << plan.status();
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(c.message));
  }
}

TEST(RootfsPlanTest, TargetElsewhere) {
  auto mount = Mount("bind", "/a", {});
  mount.set_target("/sub");
  EXPECT_TRUE(absl::IsFailedPrecondition(PlanRootfs({mount}).status()));
}

TEST(OverlayArgumentsTest, FlagsAreNotData) {
  const auto arguments =
      OverlayArguments({"ro", "noatime", "lowerdir=/a:/b", "X-containerd.x=y", "userxattr"}, 4096);
  ASSERT_TRUE(arguments.ok());
  EXPECT_EQ(arguments->data, "lowerdir=/a:/b,userxattr");
  EXPECT_EQ(arguments->flags, 1u | 1024u);  // MS_RDONLY | MS_NOATIME
  EXPECT_EQ(arguments->directory, "");
}

TEST(OverlayArgumentsTest, ManyLayersAreNamedRelatively) {
  std::string lower = "lowerdir=";
  for (int i = 160; i > 100; --i) {
    lower += "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/";
    lower += std::to_string(i) + "/fs" + (i > 101 ? ":" : "");
  }
  ASSERT_GT(lower.size(), 4096u);
  const auto arguments = OverlayArguments({"workdir=/w", "upperdir=/u", lower}, 4096);
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(arguments->directory,
            "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/");
  EXPECT_THAT(arguments->data, HasSubstr("lowerdir=160/fs:159/fs:"));
}

TEST(OverlayArgumentsTest, CommonDirectoryEndsAtASlash) {
  const std::string a(60, 'a');
  const auto arguments =
      OverlayArguments({"lowerdir=/" + a + "/bcd:/" + a + "/bce:/" + a + "/b"}, 40);
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(arguments->directory, "/" + a + "/");
  EXPECT_EQ(arguments->data, "lowerdir=bcd:bce:b");
}

TEST(OverlayArgumentsTest, TooMuchEvenWhenShortened) {
  const auto arguments =
      OverlayArguments({"lowerdir=/a:/b", "upperdir=/" + std::string(5000, 'x')}, 4096);
  EXPECT_TRUE(absl::IsFailedPrecondition(arguments.status()));
}

}  // namespace
}  // namespace magnetar::daemon
