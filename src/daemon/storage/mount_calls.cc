#include "src/daemon/storage/mount_calls.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "magnetar/mounts.h"
#include "magnetar/own_thread.h"
#include "magnetar/status.h"
#include "src/daemon/storage/file_server.h"

namespace magnetar::daemon {
namespace {

constexpr char kLowerDir[] = "lowerdir=";

// "/a/b/" for "/a/b/c/d" and "/a/b/e"; a common part is never a whole path.
std::string CommonDirectory(const std::vector<std::string>& paths) {
  std::string common = paths.front();
  for (const std::string& path : paths) {
    const auto [end, unused] =
        std::mismatch(common.begin(), common.end(), path.begin(), path.end());
    common.erase(end, common.end());
  }
  common.resize(common.rfind('/') + 1);
  return common;
}

}  // namespace

absl::StatusOr<UniqueFd> CloneTree(int source, const TreeOptions& options) {
  const unsigned recursive = options.recursive ? AT_RECURSIVE : 0;
  UniqueFd tree(
      ::open_tree(source, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive));
  if (!tree.ok()) return ErrnoStatus(errno, "open_tree");
  struct mount_attr all = {};
  all.propagation = options.follow_host ? MS_SLAVE : MS_PRIVATE;
  // A device node that a guest has made is not for its file server, which opens none anyway.
  all.attr_set = MOUNT_ATTR_NODEV;
  if (options.read_only == TreeOptions::ReadOnly::kAll) all.attr_set |= MOUNT_ATTR_RDONLY;
  struct mount_attr top = {};
  if (options.read_only == TreeOptions::ReadOnly::kTop) top.attr_set = MOUNT_ATTR_RDONLY;
  if (::mount_setattr(tree.get(), "", AT_EMPTY_PATH | AT_RECURSIVE, &all, sizeof(all)) != 0 ||
      ::mount_setattr(tree.get(), "", AT_EMPTY_PATH, &top, sizeof(top)) != 0) {
    return ErrnoStatus(errno, "mount_setattr");
  }
  return tree;
}

absl::Status AttachTree(int tree, int target) {
  if (::move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0) {
    return ErrnoStatus(errno, "move_mount");
  }
  return absl::OkStatus();
}

absl::StatusOr<MountArguments> OverlayArguments(const std::vector<std::string>& options,
                                                size_t page_bytes) {
  MountArguments result;
  MountOptions parsed = ParseMountOptions(options);
  result.flags = parsed.flags;
  std::vector<std::string>& data = parsed.data;
  // containerd's notes to itself.
  std::erase_if(
      data, [](const std::string& option) { return absl::StartsWith(option, "X-containerd."); });
  result.data = absl::StrJoin(data, ",");
  // The kernel takes one page with its terminating zero.
  if (result.data.size() < page_bytes) return result;

  const auto lower = std::find_if(data.begin(), data.end(), [](const std::string& option) {
    return absl::StartsWith(option, kLowerDir);
  });
  if (lower != data.end()) {
    std::vector<std::string> layers = absl::StrSplit(lower->substr(sizeof(kLowerDir) - 1), ':');
    result.directory = CommonDirectory(layers);
    for (std::string& layer : layers) layer.erase(0, result.directory.size());
    *lower = absl::StrCat(kLowerDir, absl::StrJoin(layers, ":"));
    result.data = absl::StrJoin(data, ",");
  }
  if (result.data.size() >= page_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("overlay options take ", result.data.size(),
                                                      " bytes, more than the kernel reads"));
  }
  return result;
}

absl::StatusOr<UniqueFd> MakeOverlay(const std::vector<std::string>& options,
                                     const std::string& scratch) {
  const absl::StatusOr<MountArguments> arguments =
      OverlayArguments(options, static_cast<size_t>(::sysconf(_SC_PAGESIZE)));
  if (!arguments.ok()) return arguments.status();
  // In a namespace that goes with the thread: fsmount(2) would need no such detour, but its options
  // hold at most 255 bytes.
  return RunOnOwnThread(LeaveMountNamespaceOnThread, [&]() -> absl::StatusOr<UniqueFd> {
    const std::string& directory = arguments->directory;
    if (!directory.empty() && ::chdir(directory.c_str()) != 0) {
      return ErrnoStatus(errno, absl::StrCat("chdir ", directory));
    }
    if (::mount("overlay", scratch.c_str(), "overlay", arguments->flags, arguments->data.c_str()) !=
        0) {
      return ErrnoStatus(errno, "mount overlay");
    }
    UniqueFd tree(::open_tree(AT_FDCWD, scratch.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    if (!tree.ok()) return ErrnoStatus(errno, "open_tree");
    struct mount_attr attributes = {};
    attributes.propagation = MS_PRIVATE;
    attributes.attr_set = MOUNT_ATTR_NODEV;
    if (::mount_setattr(tree.get(), "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) != 0) {
      return ErrnoStatus(errno, "mount_setattr");
    }
    return tree;
  });
}

absl::Status UnmountEntry(int parent, const std::string& name) {
  if (::fchdir(parent) != 0) return ErrnoStatus(errno, "fchdir");
  int flags = UMOUNT_NOFOLLOW;
  for (;;) {
    if (::umount2(name.c_str(), flags) == 0) continue;
    if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();
    // A file server that still knows a file of it, or mounts below it.
    if (errno != EBUSY || (flags & MNT_DETACH) != 0) return ErrnoStatus(errno, "umount");
    flags |= MNT_DETACH;
  }
}

}  // namespace magnetar::daemon
