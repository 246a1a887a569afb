#include "src/daemon/storage/container_mounts.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <type_traits>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "magnetar/files.h"
#include "magnetar/mounts.h"
#include "magnetar/own_thread.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/storage/mount_calls.h"
#include "src/daemon/storage/shared_tree.h"

namespace magnetar::daemon {
namespace {

// Filesystems that are doors to the host's kernel: through the file server a guest would write
// to them as root. Numbers that <linux/magic.h> lacks are from the kernel's own sources.
constexpr struct {
  decltype(statfs::f_type) magic;
  const char* name;
} kKernelFilesystems[] = {
    {PROC_SUPER_MAGIC, "proc"},     {SYSFS_MAGIC, "sysfs"},
    {CGROUP_SUPER_MAGIC, "cgroup"}, {CGROUP2_SUPER_MAGIC, "cgroup2"},
    {DEVPTS_SUPER_MAGIC, "devpts"}, {DEBUGFS_MAGIC, "debugfs"},
    {TRACEFS_MAGIC, "tracefs"},     {SECURITYFS_MAGIC, "securityfs"},
    {SELINUX_MAGIC, "selinuxfs"},   {BPF_FS_MAGIC, "bpf"},
    {NSFS_MAGIC, "nsfs"},           {BINFMTFS_MAGIC, "binfmt_misc"},
    {EFIVARFS_MAGIC, "efivarfs"},   {PSTOREFS_MAGIC, "pstore"},
    {HUGETLBFS_MAGIC, "hugetlbfs"}, {0x19800202, "mqueue"},
    {0x62656570, "configfs"},       {0x65735543, "fusectl"},
};

// As /proc/self/mountinfo has them; statfs(2) takes it for a tmpfs.
constexpr char kDevtmpfs[] = "devtmpfs";

constexpr const char* kLocalTypes[] = {"ext2", "ext3",  "ext4",    "xfs",   "btrfs",    "f2fs",
                                       "zfs",  "tmpfs", "overlay", "erofs", "squashfs", "vfat"};
// A node may have tens of thousands of mounts.
constexpr size_t kMaxMountInfo = 64 << 20;

// A path of the host that is not there, or cannot be had, is the caller's mistake, not an
// unknown sandbox: no NOT_FOUND.
absl::Status HostPathError(int error, const std::string& path) {
  const absl::Status status = ErrnoStatus(error, absl::StrCat("open ", absl::CHexEscape(path)));
  return absl::FailedPreconditionError(status.message());
}

absl::StatusOr<UniqueFd> OpenHostPath(const std::string& path, struct stat& st) {
  UniqueFd fd(::open(path.c_str(), O_PATH | O_CLOEXEC));
  if (!fd.ok() || ::fstat(fd.get(), &st) != 0) return HostPathError(errno, path);
  return fd;
}

// Runs `f` on the shared tree as `place` has it. NOT_FOUND: the file server has ended, or the
// directory is absent.
template <typename F>
std::invoke_result_t<F, SharedTree&> InPlace(const SharedPlace& place, F f) {
  using Result = std::invoke_result_t<F, SharedTree&>;
  struct stat exported = {};
  if (::stat(place.directory.c_str(), &exported) != 0) return ErrnoStatus(errno, place.directory);
  UniqueFd mount_namespace;
  if (place.file_server.has_value()) {
    absl::StatusOr<UniqueFd> opened = OpenMountNamespace(*place.file_server);
    if (!opened.ok()) return Annotate(opened.status(), "file server");
    mount_namespace = *std::move(opened);
  }
  return RunOnOwnThread([&] { return EnterMountNamespaceOnThread(mount_namespace.get()); },
                        [&]() -> Result {
                          absl::StatusOr<SharedTree> shared = SharedTree::Open(
                              mount_namespace.ok() ? "/" : place.directory, exported);
                          if (!shared.ok()) return shared.status();
                          return f(*shared);
                        });
}

absl::Status Attach(int tree, const ShareTarget& target, bool directory) {
  const absl::Status status = InPlace(target.place, [&](SharedTree& shared) -> absl::Status {
    absl::StatusOr<UniqueFd> point =
        shared.MakeMountPoint(target.container_id, target.name, directory);
    if (!point.ok()) return point.status();
    return AttachTree(tree, point->get());
  });
  // Nothing that containerd asked for is unknown.
  if (absl::IsNotFound(status)) return absl::UnavailableError(status.message());
  return status;
}

absl::Status AttachClone(int source, const TreeOptions& options, const ShareTarget& target,
                         bool directory) {
  absl::StatusOr<UniqueFd> tree = CloneTree(source, options);
  if (!tree.ok()) return tree.status();
  return Attach(tree->get(), target, directory);
}

absl::Status ShareOverlay(const RootfsPlan& plan, const ShareTarget& target) {
  absl::StatusOr<UniqueFd> tree = MakeOverlay(plan.options, target.place.directory);
  // A layer that has vanished.
  if (absl::IsNotFound(tree.status())) {
    return absl::FailedPreconditionError(tree.status().message());
  }
  if (!tree.ok()) return tree.status();
  return Attach(tree->get(), target, true);
}

absl::Status ShareDirectory(const RootfsPlan& plan, const ShareTarget& target) {
  struct stat st = {};
  absl::StatusOr<UniqueFd> source = OpenHostPath(plan.source, st);
  if (!source.ok()) return source.status();
  if (!S_ISDIR(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(plan.source, " is no directory"));
  }
  using ReadOnly = TreeOptions::ReadOnly;
  const TreeOptions options = {.recursive = plan.recursive,
                               .read_only = plan.read_only ? ReadOnly::kAll : ReadOnly::kNo,
                               .follow_host = false};
  return AttachClone(source->get(), options, target, true);
}

const char* WhatCannotBeShared(const struct stat& st) {
  switch (st.st_mode & S_IFMT) {
    case S_IFDIR:
    case S_IFREG:
      return nullptr;
    case S_IFSOCK:
      return "sockets cannot be shared with a VM";
    case S_IFIFO:
      return "FIFOs cannot be shared with a VM";
    default:
      return "devices of the host cannot be given to a VM";
  }
}

// Whether `path` is `directory` or lies in it.
bool IsWithin(const std::string& path, const std::string& directory) {
  return path == directory || absl::StartsWith(path, absl::StrCat(directory, "/"));
}

absl::StatusOr<std::string> RealPath(int fd) {
  char path[PATH_MAX];
  const ssize_t n = ::readlink(absl::StrCat("/proc/self/fd/", fd).c_str(), path, sizeof(path));
  if (n < 0) return ErrnoStatus(errno, "readlink");
  return std::string(path, static_cast<size_t>(n));
}

absl::StatusOr<std::string> RealPath(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), &::free);
  if (real == nullptr) return ErrnoStatus(errno, absl::StrCat("realpath ", path));
  return std::string(real.get());
}

// devtmpfs says it is a tmpfs. It has one device number wherever it is mounted, and in a
// container, where /dev is a tmpfs, that is meant as well.
bool IsInDev(const struct stat& st, const struct stat& root) {
  struct stat dev = {};
  return ::stat("/dev", &dev) == 0 && dev.st_dev != root.st_dev && dev.st_dev == st.st_dev;
}

absl::Status CheckFilesystem(int source, const struct stat& st, const struct stat& root) {
  struct statfs fs = {};
  if (::fstatfs(source, &fs) != 0) return ErrnoStatus(errno, "statfs");
  for (const auto& known : kKernelFilesystems) {
    if (fs.f_type == known.magic) {
      return absl::FailedPreconditionError(
          absl::StrCat("the host's ", known.name, " cannot be shared with a VM"));
    }
  }
  if (IsInDev(st, root)) {
    return absl::FailedPreconditionError("the host's /dev cannot be shared with a VM");
  }
  return absl::OkStatus();
}

absl::Status CheckHostSource(int source, const struct stat& st, const std::string& run_directory) {
  struct stat root = {};
  if (::stat("/", &root) != 0) return ErrnoStatus(errno, "stat /");
  const absl::StatusOr<std::string> path = RealPath(source);
  if (!path.ok()) return path.status();
  if (*path == "/" || (root.st_dev == st.st_dev && root.st_ino == st.st_ino)) {
    return absl::FailedPreconditionError("the host's root directory cannot be shared with a VM");
  }
  MAGNETAR_RETURN_IF_ERROR(CheckFilesystem(source, st, root));
  const absl::StatusOr<std::string> own = RealPath(run_directory);
  if (!own.ok()) return own.status();
  if (IsWithin(*path, *own) || IsWithin(*own, *path)) {
    return absl::FailedPreconditionError(
        absl::StrCat(*path, " holds or is a part of the sandboxer's own ", *own));
  }
  return absl::OkStatus();
}

SharedPlace Here(const std::string& directory) {
  return {.directory = directory, .file_server = std::nullopt};
}

// A file system that belongs to nobody's server: looking at its root does not wait.
bool AnswersAtOnce(const std::string& type) {
  return std::find(std::begin(kLocalTypes), std::end(kLocalTypes), type) != std::end(kLocalTypes);
}

// What is mounted below the source comes along with it, and is as writable for the guest as it is
// here.
absl::Status CheckNested(const std::string& source) {
  const absl::StatusOr<std::string> info = ReadFile("/proc/thread-self/mountinfo", kMaxMountInfo);
  if (!info.ok()) return info.status();
  for (const MountInfo& mount : ParseMountInfo(*info)) {
    if (!absl::StartsWith(mount.point, absl::StrCat(source, "/"))) continue;
    const bool refused =
        mount.type == kDevtmpfs ||
        std::any_of(std::begin(kKernelFilesystems), std::end(kKernelFilesystems),
                    [&mount](const auto& known) { return mount.type == known.name; });
    if (refused) {
      return absl::FailedPreconditionError(absl::StrCat("it holds ", absl::CHexEscape(mount.point),
                                                        ": the host's ", mount.type,
                                                        " cannot be shared with a VM"));
    }
  }
  return absl::OkStatus();
}

absl::Status BindHostPath(const HostBind& bind, const ShareTarget& target,
                          const std::string& run_directory) {
  struct stat st = {};
  absl::StatusOr<UniqueFd> source = OpenHostPath(bind.source, st);
  if (!source.ok()) return source.status();
  if (const char* why = WhatCannotBeShared(st)) {
    return absl::FailedPreconditionError(absl::StrCat(why, ": ", absl::CHexEscape(bind.source)));
  }
  MAGNETAR_RETURN_IF_ERROR(CheckHostSource(source->get(), st, run_directory));
  if (bind.recursive && S_ISDIR(st.st_mode)) {
    const absl::StatusOr<std::string> path = RealPath(source->get());
    if (!path.ok()) return path.status();
    MAGNETAR_RETURN_IF_ERROR(CheckNested(*path));
  }
  const TreeOptions options = {
      .recursive = bind.recursive, .read_only = bind.read_only, .follow_host = bind.follow_host};
  return AttachClone(source->get(), options, target, S_ISDIR(st.st_mode));
}

}  // namespace

absl::Status ShareRootfs(const RootfsPlan& plan, const ShareTarget& target) {
  const absl::Status status = plan.kind == RootfsPlan::Kind::kOverlay
                                  ? ShareOverlay(plan, target)
                                  : ShareDirectory(plan, target);
  return Annotate(status, "rootfs");
}

absl::Status ShareBind(const HostBind& bind, const ShareTarget& target,
                       const std::string& run_directory) {
  return Annotate(BindHostPath(bind, target, run_directory),
                  absl::StrCat("mounts[", bind.index, "] ", absl::CHexEscape(bind.destination)));
}

absl::StatusOr<std::vector<std::string>> NestedMounts(const SharedPlace& place,
                                                      const std::string& container_id) {
  const absl::StatusOr<std::string> real = RealPath(place.directory);
  if (!real.ok()) return real.status();
  // The file server's namespace has no /proc.
  const UniqueFd proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!proc.ok()) return ErrnoStatus(errno, "/proc");
  const absl::StatusOr<std::string> info = InPlace(place, [&proc](SharedTree&) {
    return ReadFileAt(proc.get(), "thread-self/mountinfo", kMaxMountInfo);
  });
  if (!info.ok()) return info.status();
  const std::string root = place.file_server.has_value() ? "" : *real;
  const std::string prefix = absl::StrCat(root, "/", container_id, "/");
  std::vector<std::string> nested;
  for (const MountInfo& mount : ParseMountInfo(*info)) {
    absl::string_view name = mount.point;
    // What has no further slash is a share itself.
    if (absl::ConsumePrefix(&name, prefix) && absl::StrContains(name, '/') &&
        AnswersAtOnce(mount.type)) {
      nested.emplace_back(name);
    }
  }
  return nested;
}

absl::Status Unshare(const ShareTarget& target) {
  const auto unmount = [&target](const SharedPlace& place) -> absl::Status {
    const absl::Status status = InPlace(place, [&target](SharedTree& shared) {
      return shared.Unmount(target.container_id, target.name);
    });
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  };
  absl::Status status = unmount(Here(target.place.directory));
  if (target.place.file_server.has_value()) status.Update(unmount(target.place));
  return status;
}

absl::Status RemoveShares(const std::string& shared_directory, const std::string& container_id) {
  const absl::Status status = InPlace(Here(shared_directory), [&container_id](SharedTree& shared) {
    return shared.Remove(container_id);
  });
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::Status UnshareAll(const std::string& shared_directory) {
  const absl::Status status = InPlace(Here(shared_directory), [](SharedTree& shared) {
    absl::Status unmounted = shared.UnmountAll();
    // Where a namespace outlives its file server, removing a mount point unmounts there too.
    unmounted.Update(shared.RemoveAll());
    return unmounted;
  });
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace magnetar::daemon
