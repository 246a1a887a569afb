#include "src/daemon/sandbox/shared_directory.h"

#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

class MountedSharedDirectory : public SharedDirectory {
 public:
  absl::Status Make(const std::string& path) override {
    // 0700: root filesystems with setuid programs lie below it.
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
    }
    if (::mount(path.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) != 0) {
      return ErrnoStatus(errno, absl::StrCat("bind ", path));
    }
    if (::mount(nullptr, path.c_str(), nullptr, MS_PRIVATE, nullptr) != 0) {
      return ErrnoStatus(errno, absl::StrCat("set propagation of ", path));
    }
    // The file server runs as root for a guest that is not trusted: only what is mounted below
    // may be written to.
    if (::mount(nullptr, path.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) != 0) {
      return ErrnoStatus(errno, absl::StrCat("make read-only ", path));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    // EINVAL: no mount point (any more).
    while (::umount2(path.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) == 0) {
    }
    if (errno != EINVAL && errno != ENOENT) {
      return ErrnoStatus(errno, absl::StrCat("unmount ", path));
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<SharedDirectory> NewSharedDirectory() {
  return std::make_unique<MountedSharedDirectory>();
}

}  // namespace magnetar::daemon
