#include "src/daemon/storage/file_server.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

absl::StatusOr<UniqueFd> OpenMountNamespace(const ProcessIdentity& process) {
  const std::string path = absl::StrCat("/proc/", process.pid, "/ns/mnt");
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const int error = errno;
  // Whatever was opened, it was this process's if that still runs.
  const absl::StatusOr<UniqueFd> running = OpenProcess(process);
  if (!running.ok()) return running.status();
  if (!fd.ok()) return ErrnoStatus(error, path);
  struct stat own = {}, theirs = {};
  if (::stat("/proc/thread-self/ns/mnt", &own) != 0 || ::fstat(fd.get(), &theirs) != 0) {
    return ErrnoStatus(errno, path);
  }
  if (own.st_dev == theirs.st_dev && own.st_ino == theirs.st_ino) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", process.pid, " has no mount namespace of its own"));
  }
  return fd;
}

absl::Status EnterMountNamespaceOnThread(int mount_namespace) {
  if (::unshare(CLONE_FS) != 0) return ErrnoStatus(errno, "unshare");
  if (mount_namespace >= 0 && ::setns(mount_namespace, CLONE_NEWNS) != 0) {
    return ErrnoStatus(errno, "enter the file server's mount namespace");
  }
  return absl::OkStatus();
}

absl::Status LeaveMountNamespaceOnThread() {
  if (::unshare(CLONE_NEWNS) != 0) return ErrnoStatus(errno, "unshare mounts");
  // What is mounted here stays here; what the host unmounts meanwhile is not held.
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) {
    return ErrnoStatus(errno, "set propagation of /");
  }
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
