#include "src/daemon/storage/empty_dir.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/mounts.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/storage/spec_mounts.h"

namespace magnetar::daemon {
namespace {

constexpr char kVolumes[] = "volumes";
constexpr char kPlugin[] = "kubernetes.io~empty-dir";
constexpr char kSubPaths[] = "volume-subpaths";
// A node may have tens of thousands of mounts.
constexpr size_t kMaxMountList = 64 << 20;

struct EmptyDir {
  std::string pod_uid;
  std::string volume;
  std::string path;       // of the whole volume
  bool sub_path = false;  // the bind has a part of it only
};

std::optional<EmptyDir> ParsePath(const std::string& source) {
  const std::vector<std::string> parts = absl::StrSplit(CleanPath(source), '/');
  const size_t n = parts.size();
  EmptyDir found;
  size_t pods = 0;
  if (n >= 5 && parts[n - 2] == kPlugin && parts[n - 3] == kVolumes) {
    // <root>/pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>
    pods = n - 5;
    found.volume = parts[n - 1];
  } else if (n >= 6 && parts[n - 4] == kSubPaths) {
    // <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<index of the mount>
    pods = n - 6;
    found.volume = parts[n - 3];
    found.sub_path = true;
  } else {
    return std::nullopt;
  }
  found.pod_uid = parts[pods + 1];
  if (parts[pods] != "pods" || !ValidateId(found.pod_uid, "pod").ok() ||
      !ValidateId(found.volume, "volume").ok()) {
    return std::nullopt;
  }
  found.path = absl::StrCat(absl::StrJoin(parts.begin(), parts.begin() + pods + 2, "/"), "/",
                            kVolumes, "/", kPlugin, "/", found.volume);
  return found;
}

// The path within its file system of what is mounted at `place`; empty: it is no mount of its own.
absl::StatusOr<std::string> RootOfMount(int place) {
  const absl::StatusOr<std::string> facts = ReadFile(absl::StrCat("/proc/self/fdinfo/", place));
  if (!facts.ok()) return facts.status();
  const absl::StatusOr<std::string> info = ReadFile("/proc/thread-self/mountinfo", kMaxMountList);
  if (!info.ok()) return info.status();
  for (const absl::string_view line : absl::StrSplit(*facts, '\n')) {
    absl::string_view id = line;
    if (!absl::ConsumePrefix(&id, "mnt_id:")) continue;
    for (MountInfo& mount : ParseMountInfo(*info)) {
      if (mount.id == absl::StripAsciiWhitespace(id)) return std::move(mount.root);
    }
  }
  return absl::NotFoundError("its mount is not listed");
}

// Which part of the volume that is open at `top` a bind has: that is what the kubelet has mounted
// at its source.
absl::StatusOr<std::vector<GuestVolume::Part>> FindParts(int top, const struct statx& volume,
                                                         const std::string& source) {
  const UniqueFd place(::open(source.c_str(), O_PATH | O_CLOEXEC));
  struct statx stx = {};
  if (!place.ok() || ::statx(place.get(), "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) != 0) {
    return ErrnoStatus(errno, absl::StrCat("open ", absl::CHexEscape(source)));
  }
  const absl::StatusOr<std::string> root = RootOfMount(place.get());
  if (!root.ok()) return root.status();
  if (stx.stx_dev_major != volume.stx_dev_major || stx.stx_dev_minor != volume.stx_dev_minor ||
      (stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) == 0) {
    return absl::FailedPreconditionError("it is no part of the volume");
  }
  std::vector<GuestVolume::Part> parts;
  UniqueFd here(::fcntl(top, F_DUPFD_CLOEXEC, 0));
  for (const absl::string_view piece : absl::StrSplit(*root, '/', absl::SkipEmpty())) {
    GuestVolume::Part part;
    part.name = std::string(piece);
    UniqueFd next(::openat(here.get(), part.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat st = {};
    if (!next.ok() || ::fstat(next.get(), &st) != 0) return ErrnoStatus(errno, *root);
    if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)) {
      return absl::FailedPreconditionError(absl::StrCat(*root, " is neither directory nor file"));
    }
    if (S_ISREG(st.st_mode) && st.st_size != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(*root, " has contents on the host, which a VM's own memory has not"));
    }
    part.mode = st.st_mode;
    part.uid = st.st_uid;
    part.gid = st.st_gid;
    parts.push_back(std::move(part));
    here = std::move(next);
  }
  return parts;
}

// nullopt: it is on the host's disk, or not there, which sharing it will tell.
absl::StatusOr<std::optional<GuestVolume>> LookAt(const HostBind& bind) {
  const std::optional<EmptyDir> volume = ParsePath(bind.source);
  if (!volume.has_value()) return std::nullopt;
  const UniqueFd place(::open(volume->path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct statfs fs = {};
  struct statx stx = {};
  if (!place.ok() || ::fstatfs(place.get(), &fs) != 0 ||
      ::statx(place.get(), "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) != 0) {
    return std::nullopt;
  }
  // The kubelet's own directory may lie on a tmpfs, too.
  if ((stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) == 0) return std::nullopt;
  const bool huge = fs.f_type == HUGETLBFS_MAGIC;
  if (!huge && fs.f_type != TMPFS_MAGIC) return std::nullopt;

  GuestVolume found;
  found.field = absl::StrCat("mounts[", bind.index, "] ", absl::CHexEscape(bind.destination));
  if (volume->sub_path) {
    absl::StatusOr<std::vector<GuestVolume::Part>> parts = FindParts(place.get(), stx, bind.source);
    if (!parts.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          found.field, ": subPath of an emptyDir in memory: ", parts.status().message()));
    }
    found.parts = *std::move(parts);
  }
  found.index = bind.index;
  found.name = absl::StrCat(volume->pod_uid, "_", volume->volume);
  // Owner and mode are the fsGroup's.
  found.options = {absl::StrFormat("mode=%04o", stx.stx_mode & 07777U),
                   absl::StrCat("uid=", stx.stx_uid), absl::StrCat("gid=", stx.stx_gid)};
  const uint64_t bytes = static_cast<uint64_t>(fs.f_blocks) * static_cast<uint64_t>(fs.f_bsize);
  if (huge) {
    found.page_size = static_cast<uint64_t>(fs.f_bsize);
    found.options.push_back(absl::StrCat("pagesize=", found.page_size));
  }
  if (bytes != 0) found.options.push_back(absl::StrCat("size=", bytes));
  return found;
}

}  // namespace

bool MayBeEmptyDir(const std::string& source) { return ParsePath(source).has_value(); }

absl::StatusOr<std::vector<GuestVolume>> FindGuestVolumes(const std::vector<HostBind>& binds) {
  std::vector<GuestVolume> volumes;
  for (const HostBind& bind : binds) {
    absl::StatusOr<std::optional<GuestVolume>> volume = LookAt(bind);
    if (!volume.ok()) return volume.status();
    if (volume->has_value()) volumes.push_back(*std::move(*volume));
  }
  return volumes;
}

}  // namespace magnetar::daemon
