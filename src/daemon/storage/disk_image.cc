#include "src/daemon/storage/disk_image.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

// Far beyond any image, and beyond the bytes that QEMU locks (100 to 299).
constexpr off_t kLockOffset = off_t{1} << 62;

bool SameFile(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Whether a loop device stands on `image`: by what the kernel says of its inode, and, where the
// device cannot be asked, by its path.
bool LoopStandsOn(const std::string& loop, const std::string& sys_block, const struct stat& image) {
  const absl::StatusOr<std::string> backing =
      ReadFile(absl::StrCat(sys_block, "/", loop, "/loop/backing_file"));
  if (!backing.ok()) return false;  // it has none
  std::string path = *backing;
  while (absl::EndsWith(path, "\n")) path.pop_back();
  struct stat st = {};
  if (::stat(path.c_str(), &st) == 0 && SameFile(st, image)) return true;
  const UniqueFd device(::open(absl::StrCat("/dev/", loop).c_str(), O_RDONLY | O_CLOEXEC));
  struct loop_info64 info = {};
  return device.ok() && ::ioctl(device.get(), LOOP_GET_STATUS64, &info) == 0 &&
         info.lo_device == image.st_dev && info.lo_inode == image.st_ino;
}

absl::Status CheckNoLoop(const std::string& sys_block, const struct stat& image) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(sys_block.c_str()), &::closedir);
  if (directory == nullptr) return ErrnoStatus(errno, absl::StrCat("open ", sys_block));
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (absl::StartsWith(name, "loop") && LoopStandsOn(name, sys_block, image)) {
      return absl::FailedPreconditionError(
          absl::StrCat("it backs /dev/", name, " on this host; a VM would destroy it"));
    }
  }
  if (errno != 0) return ErrnoStatus(errno, absl::StrCat("read ", sys_block));
  return absl::OkStatus();
}

absl::Status Claim(int fd, bool read_only) {
  struct flock lock = {};
  lock.l_type = read_only ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kLockOffset;
  lock.l_len = 1;
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return absl::OkStatus();
  if (errno == EAGAIN || errno == EACCES) {
    return absl::FailedPreconditionError("it is attached to another container's VM");
  }
  return ErrnoStatus(errno, "lock");
}

absl::StatusOr<UniqueFd> Open(const std::string& path, bool read_only,
                              const std::string& sys_block) {
  const UniqueFd place(::open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat st = {};
  if (!place.ok() || ::fstat(place.get(), &st) != 0) {
    const int error = errno;
    const absl::Status status = ErrnoStatus(error, "open");
    return error == ENOENT ? absl::FailedPreconditionError(status.message()) : status;
  }
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
    return absl::InvalidArgumentError("neither a file nor a block device");
  }
  int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC;
  if (S_ISBLK(st.st_mode) && !read_only) flags |= O_EXCL;
  UniqueFd image(::open(absl::StrCat("/proc/self/fd/", place.get()).c_str(), flags));
  if (!image.ok()) {
    if (errno == EBUSY) {
      return absl::FailedPreconditionError("it is mounted or attached elsewhere");
    }
    return ErrnoStatus(errno, "open");
  }
  if (S_ISREG(st.st_mode)) {
    MAGNETAR_RETURN_IF_ERROR(Claim(image.get(), read_only));
    if (!read_only) MAGNETAR_RETURN_IF_ERROR(CheckNoLoop(sys_block, st));
  }
  return image;
}

}  // namespace

std::string DiskSerial(const std::string& container_id) {
  // FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : container_id) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3;
  }
  return absl::StrFormat("mgr-%016x", hash);
}

absl::StatusOr<UniqueFd> OpenDiskImage(const std::string& path, bool read_only,
                                       const std::string& sys_block) {
  absl::StatusOr<UniqueFd> image = Open(path, read_only, sys_block);
  if (!image.ok()) return Annotate(image.status(), absl::StrCat("image ", path));
  return image;
}

}  // namespace magnetar::daemon
