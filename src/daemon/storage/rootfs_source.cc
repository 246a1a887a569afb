#include "src/daemon/storage/rootfs_source.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

std::vector<std::string> TypesOf(const std::vector<containerd::types::Mount>& mounts) {
  std::vector<std::string> types;
  types.reserve(mounts.size());
  for (const auto& mount : mounts) types.push_back(mount.type());
  return types;
}

absl::Status Mismatch(const std::vector<std::string>& task,
                      const std::vector<containerd::types::Mount>& containerd_says) {
  return absl::FailedPreconditionError(
      absl::StrCat("rootfs: the task was created with mounts of types [",
                   absl::CHexEscape(absl::StrJoin(task, ",")), "], containerd knows of [",
                   absl::StrJoin(TypesOf(containerd_says), ","), "]"));
}

}  // namespace

Co<absl::StatusOr<std::vector<containerd::types::Mount>>> RootfsMounts(
    ContainerdClient* containerd, std::string ns, std::string snapshotter, std::string key,
    std::string container_id, std::vector<std::string> task_mount_types) {
  auto snapshot = containerd->SnapshotMounts(ns, snapshotter, key);
  auto mounts = co_await std::move(snapshot);
  if (!mounts.ok()) {
    co_return Annotate(mounts.status(), absl::StrCat("snapshot ", snapshotter, "/", key));
  }
  if (task_mount_types == TypesOf(*mounts)) co_return mounts;

  auto activation = containerd->ActivatedMounts(ns, container_id);
  auto activated = co_await std::move(activation);
  if (absl::IsNotFound(activated.status()) || absl::IsUnimplemented(activated.status())) {
    co_return Mismatch(task_mount_types, *mounts);
  }
  if (!activated.ok()) {
    co_return Annotate(activated.status(), absl::StrCat("mounts of task ", container_id));
  }
  if (task_mount_types != TypesOf(*activated)) co_return Mismatch(task_mount_types, *activated);
  co_return activated;
}

}  // namespace magnetar::daemon
