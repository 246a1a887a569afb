#include "src/daemon/storage/empty_dir.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "magnetar/ids.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/storage/spec_mounts.h"

namespace magnetar::daemon {
namespace {

constexpr char kVolumes[] = "volumes";
constexpr char kPlugin[] = "kubernetes.io~empty-dir";
constexpr char kSubPaths[] = "volume-subpaths";

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

absl::Status Refuse(const HostBind& bind, const char* why) {
  return absl::FailedPreconditionError(
      absl::StrCat("mounts[", bind.index, "] ", absl::CHexEscape(bind.destination), ": ", why));
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
  if (fs.f_type == HUGETLBFS_MAGIC) {
    return Refuse(bind, "an emptyDir with medium HugePages is not supported in a VM");
  }
  if (fs.f_type != TMPFS_MAGIC) return std::nullopt;
  if (volume->sub_path) {
    return Refuse(bind, "subPath of an emptyDir with medium Memory is not supported in a VM");
  }

  GuestVolume found;
  found.index = bind.index;
  found.name = absl::StrCat(volume->pod_uid, "_", volume->volume);
  // Owner and mode are the fsGroup's.
  found.options = {absl::StrFormat("mode=%04o", stx.stx_mode & 07777U),
                   absl::StrCat("uid=", stx.stx_uid), absl::StrCat("gid=", stx.stx_gid)};
  const uint64_t bytes = static_cast<uint64_t>(fs.f_blocks) * static_cast<uint64_t>(fs.f_bsize);
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
