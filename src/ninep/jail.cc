#include "src/ninep/jail.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/ninep/credentials.h"
#include "src/ninep/syscall_filter.h"

namespace magnetar::ninep {
namespace {

// Without /proc in the new root: a mount of the one directory of it that is needed, from which no
// ".." leads on.
absl::StatusOr<UniqueFd> OwnDescriptors() {
  UniqueFd fd(::open_tree(AT_FDCWD, "/proc/self/fd", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  if (!fd.ok()) return ErrnoStatus(errno, "open_tree /proc/self/fd");
  return fd;
}

absl::Status MakeRoot(const std::string& directory) {
  const char* path = directory.c_str();
  if (::mount(path, path, nullptr, MS_BIND, nullptr) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind ", directory));
  }
  const UniqueFd old_root(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!old_root.ok() || ::chdir(path) != 0) return ErrnoStatus(errno, directory);
  // The old root comes to lie on the new one, and is taken off it.
  if (::syscall(SYS_pivot_root, ".", ".") != 0) return ErrnoStatus(errno, "pivot_root");
  if (::fchdir(old_root.get()) != 0 || ::umount2(".", MNT_DETACH) != 0 || ::chdir("/") != 0) {
    return ErrnoStatus(errno, "leave the host's root");
  }
  // Added to what it has: the daemon hands it read-only, so that only what is mounted below may be
  // written to.
  mount_attr added = {};
  added.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
  if (::mount_setattr(AT_FDCWD, "/", 0, &added, sizeof(added)) != 0) {
    return ErrnoStatus(errno, "no devices in the new root");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> EnterJail(const std::string& directory) {
  ::umask(0);
  if (::unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) != 0) {
    return ErrnoStatus(errno, "unshare");
  }
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) {
    return ErrnoStatus(errno, "set propagation of /");
  }
  const absl::StatusOr<UniqueFd> descriptors = OwnDescriptors();
  if (!descriptors.ok()) return descriptors.status();
  MAGNETAR_RETURN_IF_ERROR(MakeRoot(directory));
  UniqueFd root(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root.ok()) return ErrnoStatus(errno, directory);
  // The mount stays as long as this is the current directory.
  if (::fchdir(descriptors->get()) != 0) return ErrnoStatus(errno, "enter /proc/self/fd");
  MAGNETAR_RETURN_IF_ERROR(PrepareCredentials());
  MAGNETAR_RETURN_IF_ERROR(DropToServing());
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return ErrnoStatus(errno, "no_new_privs");
  MAGNETAR_RETURN_IF_ERROR(FilterSyscalls());
  return root;
}

}  // namespace magnetar::ninep
