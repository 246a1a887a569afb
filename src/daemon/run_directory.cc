#include "src/daemon/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

absl::Status MakeRunDirectory(const std::string& path) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(path, 0711));
  // 0711: VMMs, each under a uid of its own, reach their directories below.
  if (::chmod(path.c_str(), 0711) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> LockRunDirectory(const std::string& run_dir) {
  UniqueFd fd(::open(run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("open ", run_dir));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return absl::AlreadyExistsError(absl::StrCat("another daemon holds ", run_dir));
    }
    return ErrnoStatus(errno, absl::StrCat("lock ", run_dir));
  }
  return fd;
}

}  // namespace magnetar::daemon
