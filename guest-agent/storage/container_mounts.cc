#include "guest-agent/storage/container_mounts.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/storage/disks.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/storage/volume_part.h"
#include "guest-agent/util/log.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

bool HasDotDot(const std::string& path) {
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") return true;
  }
  return false;
}

// Another container may write to the tree meanwhile, and the host may have unmounted it.
void WalkInto(int directory, const std::string& path) {
  struct open_how how = {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const UniqueFd walked(
      static_cast<int>(::syscall(SYS_openat2, directory, path.c_str(), &how, sizeof(how))));
  // A file that is mounted on a file is nothing to mount here.
  if (!walked.ok() && errno != ENOTDIR) {
    Log(LogLevel::kWarn, "mount within a volume is not there path=", absl::CHexEscape(path),
        " error=", strerror(errno));
  }
}

// Has the kernel ask the file server whether there is such a name, and drop all that it knows below
// it if there is none: whoever is about to make a name must not trust what was known. The name
// itself cannot be made as a link to another file system's file. True if it is gone.
bool LookAnew(const std::string& path) {
  return ::linkat(AT_FDCWD, "/proc/self", AT_FDCWD, path.c_str(), 0) != 0 && errno != EEXIST;
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
    case agent::v1::Storage::HUGETLBFS:
      MAGNETAR_RETURN_IF_ERROR(CheckBelow(storage.target(), paths_.volumes));
      return MountVolume(storage.kind() == agent::v1::Storage::TMPFS ? "tmpfs" : "hugetlbfs",
                         storage.target(), parsed);
    case agent::v1::Storage::VOLUME_PART:
      MAGNETAR_RETURN_IF_ERROR(CheckBelow(storage.volume(), paths_.volumes));
      MAGNETAR_RETURN_IF_ERROR(CheckBelow(storage.target(), directory));
      return MountPart(storage);
    case agent::v1::Storage::BLOCK_DEVICE:
      return absl::OkStatus();  // the container's own to use
    default:
      // Never UNIMPLEMENTED: containerd would try an older Task API.
      return absl::FailedPreconditionError(
          absl::StrCat("storage of kind ", static_cast<int>(storage.kind())));
  }
}

// What the host announces as another file system, the kernel mounts in the mount namespace of
// whoever first walks into it. If that is the container's, its end is the end of that file system
// too, while requests of the program that just ended may be under way, such as the release of its
// file: Linux has a BUG there (fs/super.c of 6.1, "Busy inodes after unmount"), and the process
// never ends. So all are mounted here, before the container is made.
absl::Status KernelContainerMounts::MountAnnounced(const std::string& container_id,
                                                   const agent::v1::PreparedContainer& prepared) {
  const std::string directory = absl::StrCat(paths_.shared, "/", container_id);
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    // Nothing is opened, which may be forbidden; only walked into.
    const UniqueFd walked(::open(it->path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!walked.ok() && errno != ENOTDIR) return ErrnoStatus(errno, it->path().string());
  }
  // A container that has nothing from the host has no directory there.
  if (error && error != std::errc::no_such_file_or_directory) {
    return absl::InternalError(absl::StrCat("read ", directory, ": ", error.message()));
  }
  if (prepared.nested_mounts().empty()) return absl::OkStatus();
  const UniqueFd shared(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!shared.ok()) return ErrnoStatus(errno, directory);
  for (const std::string& path : prepared.nested_mounts()) WalkInto(shared.get(), path);
  return absl::OkStatus();
}

// Once for the pod: its containers share what is in it, one after another and side by side.
absl::Status KernelContainerMounts::MountVolume(const std::string& fstype,
                                                const std::string& target,
                                                const MountOptions& options) {
  const std::lock_guard lock(volumes_mutex_);
  const absl::StatusOr<std::vector<std::string>> mounts = MountsBelow(target);
  if (!mounts.ok()) return mounts.status();
  if (std::find(mounts->begin(), mounts->end(), target) != mounts->end()) return absl::OkStatus();
  return Mount(fstype, target, fstype, options.flags, absl::StrJoin(options.data, ","));
}

absl::Status KernelContainerMounts::MountPart(const agent::v1::Storage& storage) {
  const std::lock_guard lock(volumes_mutex_);
  const absl::StatusOr<UniqueFd> part = OpenVolumePart(storage);
  if (!part.ok()) return part.status();
  return BindVolumePart(part->get(), storage.target());
}

absl::Status KernelContainerMounts::MountAll(const std::string& container_id,
                                             const agent::v1::PreparedContainer& prepared) {
  const std::string directory = absl::StrCat(paths_.containers, "/", container_id);
  absl::Status status =
      Annotate(MountAnnounced(container_id, prepared), "mount what the host shares");
  if (status.ok()) status = huge_pages_.Reserve(container_id, prepared.huge_pages());
  for (int i = 0; status.ok() && i < prepared.storages_size(); ++i) {
    status = Annotate(MountOne(directory, prepared.storages(i)), absl::StrCat("storage ", i));
  }
  if (status.ok()) return status;
  const absl::Status undone = UnmountAll(container_id);
  if (!undone.ok()) Log(LogLevel::kError, "undo of mounts failed: ", undone.message());
  return status;
}

absl::Status KernelContainerMounts::UnmountAll(const std::string& container_id) {
  absl::Status first;
  // The file server answers in order: what the container's end has asked of it is over after this.
  struct statfs ignored {};
  (void)::statfs(paths_.shared.c_str(), &ignored);
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
  first.Update(huge_pages_.Release(container_id));
  return first;
}

void KernelContainerMounts::Forget(const std::string& container_id) {
  const std::lock_guard lock(known_mutex_);
  known_.insert(container_id);
  // With a daemon that was away it may take until another one's end.
  std::erase_if(known_, [this](const std::string& id) {
    return LookAnew(absl::StrCat(paths_.shared, "/", id));
  });
}

}  // namespace magnetar::guest
