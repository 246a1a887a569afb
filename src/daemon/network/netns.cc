#include "src/daemon/network/netns.h"

#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

absl::StatusOr<UniqueFd> OpenNetns(const std::string& path) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", path, "\" is no absolute path of a network namespace"));
  }
  // O_NONBLOCK: a fifo at the path must not hang the caller.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) {
    const int error = errno;
    absl::Status status = ErrnoStatus(error, absl::StrCat("open network namespace ", path));
    static constexpr int kNoSuchPath[] = {ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, ENXIO};
    const bool absent = std::count(std::begin(kNoSuchPath), std::end(kNoSuchPath), error) != 0;
    return absent ? absl::NotFoundError(status.message()) : status;
  }
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  const int type = ::ioctl(fd.get(), NS_GET_NSTYPE);
  if (type != CLONE_NEWNET) {
    // An empty file is what is left of an unmounted namespace.
    if (type < 0 && S_ISREG(st.st_mode) && st.st_size == 0) {
      return absl::NotFoundError(absl::StrCat(path, " is a network namespace no more"));
    }
    return absl::InvalidArgumentError(absl::StrCat(path, " is no network namespace"));
  }
  struct stat own;
  if (::stat("/proc/thread-self/ns/net", &own) != 0) {
    return ErrnoStatus(errno, "stat /proc/thread-self/ns/net");
  }
  if (own.st_dev == st.st_dev && own.st_ino == st.st_ino) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is the host's own network namespace"));
  }
  return fd;
}

absl::Status EnterNetns(int netns_fd) {
  if (::setns(netns_fd, CLONE_NEWNET) != 0) return ErrnoStatus(errno, "enter network namespace");
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
