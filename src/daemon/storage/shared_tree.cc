#include "src/daemon/storage/shared_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/storage/mount_calls.h"

namespace magnetar::daemon {
namespace {

// Below `directory`, on the same mount, through no link. -1 and errno on failure.
int OpenBelow(int directory, const std::string& path, int flags, mode_t mode = 0) {
  struct open_how how = {};
  how.flags = static_cast<uint64_t>(flags) | O_CLOEXEC | O_NOFOLLOW;
  how.mode = mode;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  return static_cast<int>(::syscall(SYS_openat2, directory, path.c_str(), &how, sizeof(how)));
}

// A directory or an empty file; one of the other kind, left behind, gives way.
absl::Status MakeEntry(int parent, const std::string& name, bool directory) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (directory) {
      if (::mkdirat(parent, name.c_str(), 0755) == 0) return absl::OkStatus();
    } else {
      const UniqueFd file(OpenBelow(parent, name, O_WRONLY | O_CREAT | O_EXCL, 0644));
      if (file.ok()) return absl::OkStatus();
    }
    if (errno != EEXIST) return ErrnoStatus(errno, absl::StrCat("create ", name));
    struct stat st = {};
    if (::fstatat(parent, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      return ErrnoStatus(errno, absl::StrCat("stat ", name));
    }
    if (directory ? S_ISDIR(st.st_mode) : S_ISREG(st.st_mode)) return absl::OkStatus();
    if (::unlinkat(parent, name.c_str(), S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) != 0) {
      return ErrnoStatus(errno, absl::StrCat("remove ", name));
    }
  }
  return absl::AbortedError(absl::StrCat("create ", name, ": it changes meanwhile"));
}

absl::StatusOr<std::vector<std::string>> Entries(UniqueFd directory) {
  std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(directory.get()), &::closedir);
  if (stream == nullptr) return ErrnoStatus(errno, "read directory");
  (void)directory.release();
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) return ErrnoStatus(errno, "read directory");
  return names;
}

}  // namespace

absl::StatusOr<SharedTree> SharedTree::Open(const std::string& path, const struct stat& expected) {
  UniqueFd exported(::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat st = {};
  if (!exported.ok() || ::fstat(exported.get(), &st) != 0) {
    return ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  if (st.st_dev != expected.st_dev || st.st_ino != expected.st_ino) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not the shared directory"));
  }
  UniqueFd writable(
      ::open_tree(exported.get(), "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  if (!writable.ok()) return ErrnoStatus(errno, absl::StrCat("open_tree ", path));
  struct mount_attr attributes = {};
  attributes.attr_clr = MOUNT_ATTR_RDONLY;
  attributes.propagation = MS_PRIVATE;
  if (::mount_setattr(writable.get(), "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("mount_setattr ", path));
  }
  return SharedTree(std::move(exported), std::move(writable));
}

absl::StatusOr<UniqueFd> SharedTree::MakeMountPoint(const std::string& container_id,
                                                    const std::string& name, bool directory) {
  if (::mkdirat(writable_.get(), container_id.c_str(), 0755) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("create shared/", container_id));
  }
  const UniqueFd container(OpenBelow(writable_.get(), container_id, O_PATH | O_DIRECTORY));
  if (!container.ok()) return ErrnoStatus(errno, absl::StrCat("open shared/", container_id));
  const absl::Status made = MakeEntry(container.get(), name, directory);
  if (!made.ok()) return Annotate(made, absl::StrCat("shared/", container_id));

  UniqueFd target(OpenBelow(exported_.get(), absl::StrCat(container_id, "/", name), O_PATH));
  if (!target.ok()) {
    const int error = errno;
    const std::string what = absl::StrCat("open shared/", container_id, "/", name);
    if (error == EXDEV) {
      return absl::FailedPreconditionError(absl::StrCat(what, ": something is mounted there"));
    }
    return ErrnoStatus(error, what);
  }
  return target;
}

absl::Status SharedTree::Unmount(const std::string& container_id, const std::string& name) {
  const UniqueFd container(OpenBelow(exported_.get(), container_id, O_PATH | O_DIRECTORY));
  if (!container.ok()) {
    if (errno == ENOENT || errno == ENOTDIR) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("open shared/", container_id));
  }
  return Annotate(UnmountEntry(container.get(), name),
                  absl::StrCat("shared/", container_id, "/", name));
}

absl::Status SharedTree::UnmountAll() {
  const auto list = [this](const std::string& path) -> absl::StatusOr<std::vector<std::string>> {
    UniqueFd listing(OpenBelow(exported_.get(), path, O_RDONLY | O_DIRECTORY));
    // No directory: nothing is mounted on an entry of it.
    if (!listing.ok() && errno == ENOTDIR) return std::vector<std::string>();
    if (!listing.ok()) return ErrnoStatus(errno, absl::StrCat("open shared/", path));
    return Entries(std::move(listing));
  };
  const absl::StatusOr<std::vector<std::string>> containers = list(".");
  if (!containers.ok()) return containers.status();
  absl::Status first_error;
  for (const std::string& container_id : *containers) {
    const absl::StatusOr<std::vector<std::string>> names = list(container_id);
    first_error.Update(names.status());
    if (!names.ok()) continue;
    for (const std::string& name : *names) first_error.Update(Unmount(container_id, name));
  }
  return first_error;
}

absl::Status SharedTree::RemoveAll() {
  UniqueFd listing(OpenBelow(writable_.get(), ".", O_RDONLY | O_DIRECTORY));
  if (!listing.ok()) return ErrnoStatus(errno, "open shared");
  const absl::StatusOr<std::vector<std::string>> containers = Entries(std::move(listing));
  if (!containers.ok()) return containers.status();
  absl::Status first_error;
  for (const std::string& container_id : *containers) first_error.Update(Remove(container_id));
  return first_error;
}

absl::Status SharedTree::Remove(const std::string& container_id) {
  const UniqueFd container(OpenBelow(writable_.get(), container_id, O_PATH | O_DIRECTORY));
  UniqueFd listing(OpenBelow(writable_.get(), container_id, O_RDONLY | O_DIRECTORY));
  if (!container.ok() || !listing.ok()) {
    if (errno == ENOENT) return absl::OkStatus();
    // Something else that a guest has put in its place.
    if (errno == ENOTDIR && ::unlinkat(writable_.get(), container_id.c_str(), 0) == 0) {
      return absl::OkStatus();
    }
    return ErrnoStatus(errno, absl::StrCat("open shared/", container_id));
  }
  const absl::StatusOr<std::vector<std::string>> names = Entries(std::move(listing));
  if (!names.ok()) return Annotate(names.status(), absl::StrCat("shared/", container_id));
  for (const std::string& name : *names) {
    if (::unlinkat(container.get(), name.c_str(), 0) == 0 || errno == ENOENT) continue;
    if (errno == EISDIR &&
        (::unlinkat(container.get(), name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT)) {
      continue;
    }
    return ErrnoStatus(errno, absl::StrCat("remove shared/", container_id, "/", name));
  }
  if (::unlinkat(writable_.get(), container_id.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("remove shared/", container_id));
  }
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
