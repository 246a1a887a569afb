#include "guest-agent/storage/container_mounts.h"

#include <sys/mount.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/storage/disks.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/util/log.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

// Hotplug takes milliseconds; a disk that is not there by then will not come.
constexpr auto kDiskTimeout = std::chrono::seconds(10);

bool HasDotDot(const std::string& path) {
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") return true;
  }
  return false;
}

}  // namespace

absl::Status CheckBelow(const std::string& path, const std::string& directory) {
  if (absl::StartsWith(path, absl::StrCat(directory, "/")) && !HasDotDot(path)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("path \"", absl::CHexEscape(path), "\" is not below ", directory));
}

absl::Status KernelContainerMounts::MountOne(const std::string& directory,
                                             const agent::v1::Storage& storage) {
  const std::vector<std::string> options(storage.options().begin(), storage.options().end());
  MountOptions parsed = ParseMountOptions(options);
  if (storage.read_only()) parsed.flags |= MS_RDONLY;
  switch (storage.kind()) {
    case agent::v1::Storage::DISK: {
      MAGNETAR_RETURN_IF_ERROR(CheckBelow(storage.target(), directory));
      LoadModulesFor("scsi");
      LoadModulesFor(storage.fstype());
      const absl::StatusOr<std::string> disk = WaitForDisk(storage.serial(), kDiskTimeout);
      if (!disk.ok()) return disk.status();
      return Mount(*disk, storage.target(), storage.fstype(), parsed.flags,
                   absl::StrJoin(parsed.data, ","));
    }
    case agent::v1::Storage::TMPFS:
      MAGNETAR_RETURN_IF_ERROR(CheckBelow(storage.target(), paths_.volumes));
      return MountVolume(storage.target(), parsed);
    default:
      // Never UNIMPLEMENTED: containerd would try an older Task API.
      return absl::FailedPreconditionError(
          absl::StrCat("storage of kind ", static_cast<int>(storage.kind())));
  }
}

// Once for the pod: its containers share what is in it, one after another and side by side.
absl::Status KernelContainerMounts::MountVolume(const std::string& target,
                                                const MountOptions& options) {
  const std::lock_guard lock(volumes_mutex_);
  const absl::StatusOr<std::vector<std::string>> mounts = MountsBelow(target);
  if (!mounts.ok()) return mounts.status();
  if (std::find(mounts->begin(), mounts->end(), target) != mounts->end()) return absl::OkStatus();
  return Mount("tmpfs", target, "tmpfs", options.flags, absl::StrJoin(options.data, ","));
}

absl::Status KernelContainerMounts::MountAll(const std::string& container_id,
                                             const std::vector<agent::v1::Storage>& storages) {
  const std::string directory = absl::StrCat(paths_.containers, "/", container_id);
  for (size_t i = 0; i < storages.size(); ++i) {
    const absl::Status status = MountOne(directory, storages[i]);
    if (status.ok()) continue;
    const absl::Status undone = UnmountAll(container_id);
    if (!undone.ok()) Log(LogLevel::kError, "undo of mounts failed: ", undone.message());
    return Annotate(status, absl::StrCat("storage ", i));
  }
  return absl::OkStatus();
}

absl::Status KernelContainerMounts::UnmountAll(const std::string& container_id) {
  absl::Status first;
  // Below the shared directory the kernel itself mounts what the host announces as
  // another file system; while one is mounted, the host cannot let go of it.
  for (const std::string& parent : {paths_.containers, paths_.shared}) {
    const absl::StatusOr<std::vector<std::string>> mounts =
        MountsBelow(absl::StrCat(parent, "/", container_id));
    if (!mounts.ok()) return mounts.status();
    for (const std::string& target : *mounts) {
      const absl::Status status = Unmount(target);
      if (first.ok()) first = status;
    }
  }
  return first;
}

}  // namespace magnetar::guest
