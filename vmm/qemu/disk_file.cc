#include "vmm/qemu/disk_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::vmm::qemu {

absl::StatusOr<std::string> BlockDriverOf(int fd) {
  struct stat st;
  if (::fstat(fd, &st) != 0) return ErrnoStatus(errno, absl::StrCat("disk, descriptor ", fd));
  if (S_ISREG(st.st_mode)) return "file";
  if (S_ISBLK(st.st_mode)) return "host_device";
  return absl::InvalidArgumentError("a disk must be a regular file or a block device");
}

absl::StatusOr<BlockSizes> BlockSizesOf(int fd) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) return ErrnoStatus(errno, absl::StrCat("disk, descriptor ", fd));
  BlockSizes sizes;
  if (!S_ISBLK(st.st_mode)) return sizes;
  int logical = 0;
  if (::ioctl(fd, BLKSSZGET, &logical) != 0 || ::ioctl(fd, BLKPBSZGET, &sizes.physical) != 0) {
    return ErrnoStatus(errno, "sector size of the disk");
  }
  sizes.logical = static_cast<unsigned>(logical);
  return sizes;
}

absl::StatusOr<UniqueFd> DescriptorFor(int fd, bool read_only) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return ErrnoStatus(errno, absl::StrCat("disk, descriptor ", fd));
  const int access = flags & O_ACCMODE;
  if (!read_only && access != O_RDWR) {
    return absl::InvalidArgumentError("a writable disk needs a descriptor open for both");
  }
  UniqueFd copy;
  if (read_only && access != O_RDONLY) {
    copy.reset(::open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDONLY | O_CLOEXEC));
  } else {
    copy.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  }
  if (!copy.ok()) return ErrnoStatus(errno, absl::StrCat("disk, descriptor ", fd));
  return copy;
}

absl::StatusOr<std::string> DiskId(const std::string& serial) {
  bool valid = !serial.empty() && serial.size() <= 20;
  for (const char c : serial) {
    valid = valid && (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' ||
                      c == '.');
  }
  if (!valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("disk serial \"", serial, "\": expected 1 to 20 of A-Z a-z 0-9 - _ ."));
  }
  return absl::StrCat("disk-", serial);
}

}  // namespace magnetar::vmm::qemu
