#include "guest-agent/init/boot.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/reboot.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/storage/disks.h"
#include "guest-agent/task/cgroup.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

constexpr char kNewRoot[] = "/sysroot";
constexpr auto kRootTimeout = std::chrono::seconds(20);

struct SystemMount {
  const char* type;
  const char* target;
  unsigned long flags;
  const char* data;
};

// What containerd gives its containers on a host (and fs.nr_open, the kernel's own limit): they
// inherit it from PID 1. The kernel's 1024 and 4096 would be too few for the agent, too.
constexpr rlim_t kOpenFiles = 1048576;

constexpr unsigned long kSafe = MS_NOSUID | MS_NODEV | MS_NOEXEC;

constexpr SystemMount kKernelMounts[] = {
    {"proc", "/proc", kSafe, nullptr},
    {"sysfs", "/sys", kSafe, nullptr},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755"},
};

constexpr SystemMount kRootMounts[] = {
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5"},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"cgroup2", "/sys/fs/cgroup", kSafe, "nsdelegate"},
};

absl::Status MountSystem(const SystemMount& mount) {
  if (::mkdir(mount.target, 0755) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("mkdir ", mount.target));
  }
  if (::mount(mount.type, mount.target, mount.type, mount.flags, mount.data) == 0) {
    return absl::OkStatus();
  }
  // devtmpfs may come mounted.
  if (errno == EBUSY) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("mount ", mount.type, " at ", mount.target));
}

// The initrd's files are memory: they go once the root image is there.
void RemoveInitrdFiles(int directory, dev_t device) {
  DIR* dir = ::fdopendir(directory);
  if (dir == nullptr) {
    ::close(directory);
    return;
  }
  while (const dirent* entry = ::readdir(dir)) {
    const absl::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat st;
    if (::fstatat(::dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        st.st_dev != device) {
      continue;
    }
    if (!S_ISDIR(st.st_mode)) {
      ::unlinkat(::dirfd(dir), entry->d_name, 0);
      continue;
    }
    const int child =
        ::openat(::dirfd(dir), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (child >= 0) RemoveInitrdFiles(child, device);
    ::unlinkat(::dirfd(dir), entry->d_name, AT_REMOVEDIR);
  }
  ::closedir(dir);
}

absl::Status MoveMount(const std::string& from, const std::string& to) {
  if (::mount(from.c_str(), to.c_str(), nullptr, MS_MOVE, nullptr) != 0) {
    return ErrnoStatus(errno, absl::StrCat("move ", from, " to ", to));
  }
  return absl::OkStatus();
}

absl::Status PrepareCgroups() {
  const std::string root = "/sys/fs/cgroup";
  const std::string agent = absl::StrCat(root, "/agent");
  const std::string pod = absl::StrCat(root, "/pod");
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(agent, 0755));
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(pod, 0755));
  // Controllers reach only children of a cgroup without processes.
  MAGNETAR_RETURN_IF_ERROR(WriteExisting(absl::StrCat(agent, "/cgroup.procs"), "0"));
  MAGNETAR_RETURN_IF_ERROR(EnableControllers(root));
  return EnableControllers(pod);
}

absl::Status RaiseFileLimit() {
  const rlimit limit = {kOpenFiles, kOpenFiles};
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return ErrnoStatus(errno, "limit of open files");
  return absl::OkStatus();
}

}  // namespace

bool InInitrd() {
  struct statfs fs;
  if (::statfs("/", &fs) != 0) return false;
  return fs.f_type == RAMFS_MAGIC || fs.f_type == TMPFS_MAGIC;
}

absl::Status SwitchToRootImage() {
  for (const SystemMount& mount : kKernelMounts) MAGNETAR_RETURN_IF_ERROR(MountSystem(mount));
  LoadModules("/etc/magnetar/modules.boot");
  const absl::StatusOr<std::string> disk = WaitForDisk(kRootSerial, kRootTimeout);
  if (!disk.ok()) return Annotate(disk.status(), "root image");
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(kNewRoot, 0755));
  if (::mount(disk->c_str(), kNewRoot, "erofs", MS_RDONLY | MS_NODEV, nullptr) != 0) {
    return ErrnoStatus(errno, absl::StrCat("mount root image ", *disk));
  }
  for (const SystemMount& mount : kKernelMounts) {
    MAGNETAR_RETURN_IF_ERROR(MoveMount(mount.target, absl::StrCat(kNewRoot, mount.target)));
  }
  struct stat st;
  const int old_root = ::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (old_root >= 0 && ::fstat(old_root, &st) == 0) RemoveInitrdFiles(old_root, st.st_dev);
  if (::chdir(kNewRoot) != 0) return ErrnoStatus(errno, "enter the root image");
  MAGNETAR_RETURN_IF_ERROR(MoveMount(".", "/"));
  if (::chroot(".") != 0 || ::chdir("/") != 0) return ErrnoStatus(errno, "enter the root image");
  ::execl(kAgentBinary, kAgentBinary, nullptr);
  return ErrnoStatus(errno, absl::StrCat("exec ", kAgentBinary));
}

absl::Status PrepareRoot() {
  for (const SystemMount& mount : kKernelMounts) MAGNETAR_RETURN_IF_ERROR(MountSystem(mount));
  for (const SystemMount& mount : kRootMounts) MAGNETAR_RETURN_IF_ERROR(MountSystem(mount));
  LoadModules("/etc/magnetar/modules");
  for (const char* directory : {"/run/crun", "/run/magnetar/crun", "/run/magnetar/tty",
                                "/run/magnetar/containers", "/run/magnetar/pod"}) {
    MAGNETAR_RETURN_IF_ERROR(MakeDirectories(directory));
  }
  MAGNETAR_RETURN_IF_ERROR(RaiseFileLimit());
  return PrepareCgroups();
}

void EndMachine() {
  ::sync();
  ::reboot(RB_AUTOBOOT);
  // Without the right to reboot the end of PID 1 has the same effect.
  ::_exit(1);
}

}  // namespace magnetar::guest
