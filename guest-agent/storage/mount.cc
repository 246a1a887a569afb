#include "guest-agent/storage/mount.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"
#include "magnetar/mounts.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

void SyncFileSystem(const std::string& target) {
  const UniqueFd fd(::open(target.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok() || ::syncfs(fd.get()) != 0) {
    Log(LogLevel::kWarn, "sync of ", target, " failed errno=", errno);
  }
}

}  // namespace

absl::Status Mount(const std::string& source, const std::string& target, const std::string& fstype,
                   unsigned long flags, const std::string& data) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(target, 0755));
  const unsigned long first = flags & MS_BIND ? flags & (MS_BIND | MS_REC) : flags;
  if (::mount(source.c_str(), target.c_str(), fstype.c_str(), first,
              data.empty() ? nullptr : data.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("mount ", source, " at ", target, " as ",
                                           fstype.empty() ? "bind" : fstype));
  }
  // The kernel takes the other flags of a bind mount in a second step only.
  if ((flags & MS_BIND) != 0 && (flags & ~(MS_BIND | MS_REC)) != 0 &&
      ::mount(nullptr, target.c_str(), nullptr, (flags & ~MS_REC) | MS_REMOUNT, nullptr) != 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("remount ", target));
    ::umount2(target.c_str(), MNT_DETACH);
    return status;
  }
  return absl::OkStatus();
}

absl::Status Unmount(const std::string& target) {
  while (::umount2(target.c_str(), UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();
  if (errno != EBUSY) return ErrnoStatus(errno, absl::StrCat("unmount ", target));
  Log(LogLevel::kWarn, "mount is busy and gets detached target=", target);
  SyncFileSystem(target);
  if (::umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0 && errno != EINVAL) {
    return ErrnoStatus(errno, absl::StrCat("detach ", target));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MountsBelow(absl::string_view path) {
  const absl::StatusOr<std::string> info = ReadFile("/proc/self/mountinfo");
  if (!info.ok()) return info.status();
  std::vector<std::string> found;
  for (std::string& target : MountPoints(*info)) {
    const bool below = absl::StartsWith(target, path) &&
                       (target.size() == path.size() || target[path.size()] == '/');
    if (below) found.push_back(std::move(target));
  }
  std::reverse(found.begin(), found.end());
  return found;
}

}  // namespace magnetar::guest
