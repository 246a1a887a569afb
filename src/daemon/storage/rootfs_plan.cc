#include "src/daemon/storage/rootfs_plan.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace magnetar::daemon {
namespace {

// Filesystems on a disk that the guest's kernel can mount.
constexpr struct {
  const char* type;
  bool always_read_only;
} kDiskTypes[] = {
    {"ext4", false},
    {"erofs", true},
};

// Those of containerd's that it cannot.
constexpr const char* kOtherDiskTypes[] = {"xfs", "ext2", "btrfs"};

std::string TypeList(const std::vector<containerd::types::Mount>& mounts) {
  return absl::CHexEscape(absl::StrJoin(mounts, ",", [](std::string* out, const auto& mount) {
    absl::StrAppend(out, mount.type());
  }));
}

bool HasOption(const containerd::types::Mount& mount, const char* option) {
  return std::find(mount.options().begin(), mount.options().end(), option) != mount.options().end();
}

absl::Status CheckSource(const containerd::types::Mount& mount) {
  if (!absl::StartsWith(mount.source(), "/")) {
    return absl::InvalidArgumentError(absl::StrCat("rootfs: ", mount.type(), " source \"",
                                                   absl::CHexEscape(mount.source()),
                                                   "\" is no absolute path"));
  }
  return absl::OkStatus();
}

absl::StatusOr<RootfsPlan> PlanOverlay(const containerd::types::Mount& mount) {
  RootfsPlan plan;
  plan.kind = RootfsPlan::Kind::kOverlay;
  plan.options.assign(mount.options().begin(), mount.options().end());
  plan.read_only = HasOption(mount, "ro");
  const bool has_lower =
      std::any_of(plan.options.begin(), plan.options.end(),
                  [](const std::string& option) { return absl::StartsWith(option, "lowerdir=/"); });
  if (!has_lower) return absl::InvalidArgumentError("rootfs: overlay without lower directories");
  return plan;
}

absl::StatusOr<RootfsPlan> PlanBind(const containerd::types::Mount& mount) {
  if (absl::Status status = CheckSource(mount); !status.ok()) return status;
  RootfsPlan plan;
  plan.kind = RootfsPlan::Kind::kBind;
  plan.source = mount.source();
  plan.recursive = HasOption(mount, "rbind");
  plan.read_only = HasOption(mount, "ro");
  return plan;
}

absl::StatusOr<RootfsPlan> PlanDisk(const containerd::types::Mount& mount, bool always_read_only) {
  if (absl::Status status = CheckSource(mount); !status.ok()) return status;
  RootfsPlan plan;
  plan.kind = RootfsPlan::Kind::kDisk;
  plan.source = mount.source();
  plan.fstype = mount.type();
  plan.read_only = always_read_only || HasOption(mount, "ro");
  for (const std::string& option : mount.options()) {
    if (absl::StartsWith(option, "device=") || absl::StartsWith(option, "X-containerd.")) {
      return absl::FailedPreconditionError(absl::StrCat("rootfs: ", mount.type(), " with option \"",
                                                        absl::CHexEscape(option), "\""));
    }
    if (option == "loop" || option == "ro" || option == "rw") continue;
    plan.options.push_back(option);
  }
  return plan;
}

}  // namespace

absl::StatusOr<RootfsPlan> PlanRootfs(const std::vector<containerd::types::Mount>& mounts) {
  if (mounts.empty()) {
    return absl::FailedPreconditionError("rootfs: containerd knows no mounts for it");
  }
  for (const auto& mount : mounts) {
    if (mount.type().find('/') != std::string::npos) {
      return absl::FailedPreconditionError(absl::StrCat(
          "rootfs: mounts of types [", TypeList(mounts),
          "] are templates that containerd has not mounted; unset its runtime-allow-mounts"));
    }
  }
  if (mounts.size() > 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("rootfs: several mounts of types [", TypeList(mounts), "]"));
  }
  const auto& mount = mounts.front();
  if (!mount.target().empty() && mount.target() != "/") {
    return absl::FailedPreconditionError(absl::StrCat("rootfs: ", TypeList(mounts), " at \"",
                                                      absl::CHexEscape(mount.target()), "\""));
  }
  if (mount.type() == "overlay") return PlanOverlay(mount);
  if (mount.type() == "bind" || HasOption(mount, "bind") || HasOption(mount, "rbind")) {
    return PlanBind(mount);
  }
  for (const auto& disk : kDiskTypes) {
    if (mount.type() == disk.type) return PlanDisk(mount, disk.always_read_only);
  }
  for (const char* type : kOtherDiskTypes) {
    if (mount.type() == type) {
      return absl::FailedPreconditionError(
          absl::StrCat("rootfs: the guest's kernel has ext4 and erofs for disks, not ", type));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("rootfs: mount type \"", TypeList(mounts), "\" is not known"));
}

}  // namespace magnetar::daemon
