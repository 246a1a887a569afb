#include "magnetar/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "magnetar/directory.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar {
namespace {

absl::Status WriteAll(int fd, std::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, absl::StrCat("write ", path));
    }
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  if (slash == 0) return "/";
  return path.substr(0, slash);
}

// Nothing, and errno, if it fails.
std::optional<uint64_t> MountIdAt(int dir_fd, const char* name) {
  struct statx st;
  if (::statx(dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, STATX_MNT_ID, &st) != 0) {
    return std::nullopt;
  }
  return st.stx_mnt_id;
}

// What lies below a directory, removed without recursion and with one directory open at a time:
// how deep the tree goes is up to whoever may write to it.
class TreeRemover {
 public:
  TreeRemover(UniqueFd root, uint64_t mount_id, const std::string& path)
      : directory_(std::move(root)), mount_id_(mount_id), path_(path) {}

  absl::Status Run();

 private:
  // A directory that is being emptied, as it is found again from the child being worked on.
  struct Parent {
    dev_t device = 0;
    ino_t inode = 0;
    std::string child;
  };

  // Removes what can go at once. The name of a directory that must be emptied first, or nothing
  // once the directory is empty.
  absl::StatusOr<std::string> Clear();
  absl::Status RemoveEntry(int directory, const char* name, bool& filled);
  absl::Status Descend(const std::string& name);
  absl::Status Ascend();
  // For messages: bounded, and whatever the names hold.
  std::string PathOf(absl::string_view name) const;

  UniqueFd directory_;
  const uint64_t mount_id_;
  const std::string& path_;
  std::vector<Parent> parents_;
};

absl::Status TreeRemover::Run() {
  while (true) {
    auto filled = Clear();
    if (!filled.ok()) return filled.status();
    if (!filled->empty()) {
      MAGNETAR_RETURN_IF_ERROR(Descend(*filled));
    } else if (!parents_.empty()) {
      MAGNETAR_RETURN_IF_ERROR(Ascend());
    } else {
      return absl::OkStatus();
    }
  }
}

absl::StatusOr<std::string> TreeRemover::Clear() {
  // A description of its own, which begins at the first entry.
  UniqueFd copy(::openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  std::unique_ptr<DIR, DirectoryCloser> dir(copy.ok() ? ::fdopendir(copy.get()) : nullptr);
  if (dir == nullptr) return ErrnoStatus(errno, absl::StrCat("open directory ", PathOf("")));
  (void)copy.release();
  // Reading on after a removal may skip entries, so the last pass is one without.
  for (bool removed = true; removed; ::rewinddir(dir.get())) {
    removed = false;
    errno = 0;
    while (const dirent* entry = ::readdir(dir.get())) {
      const std::string_view name = entry->d_name;
      if (name == "." || name == "..") continue;
      bool filled = false;
      MAGNETAR_RETURN_IF_ERROR(RemoveEntry(::dirfd(dir.get()), entry->d_name, filled));
      if (filled) return std::string(name);
      removed = true;
      errno = 0;
    }
    if (errno != 0) return ErrnoStatus(errno, absl::StrCat("read directory ", PathOf("")));
  }
  return std::string();
}

absl::Status TreeRemover::RemoveEntry(int directory, const char* name, bool& filled) {
  const auto mount_id = MountIdAt(directory, name);
  if (!mount_id.has_value()) {
    if (errno == ENOENT) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("statx ", PathOf(name)));
  }
  if (*mount_id != mount_id_) {
    return absl::FailedPreconditionError(absl::StrCat(PathOf(name), " is a mount point"));
  }
  if (::unlinkat(directory, name, 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno == EISDIR) {
    if (::unlinkat(directory, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return absl::OkStatus();
    filled = errno == ENOTEMPTY || errno == EEXIST;
    if (filled) return absl::OkStatus();
  }
  return ErrnoStatus(errno, absl::StrCat("remove ", PathOf(name)));
}

absl::Status TreeRemover::Descend(const std::string& name) {
  struct stat st;
  if (::fstat(directory_.get(), &st) != 0) {
    return ErrnoStatus(errno, absl::StrCat("stat ", PathOf("")));
  }
  UniqueFd child(
      ::openat(directory_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!child.ok()) return ErrnoStatus(errno, absl::StrCat("open ", PathOf(name)));
  parents_.push_back({.device = st.st_dev, .inode = st.st_ino, .child = name});
  directory_ = std::move(child);
  return absl::OkStatus();
}

absl::Status TreeRemover::Ascend() {
  const Parent parent = std::move(parents_.back());
  parents_.pop_back();
  UniqueFd up(::openat(directory_.get(), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!up.ok()) return ErrnoStatus(errno, absl::StrCat("open ", PathOf("")));
  struct stat st;
  if (::fstat(up.get(), &st) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", PathOf("")));
  if (st.st_dev != parent.device || st.st_ino != parent.inode) {
    return absl::AbortedError(
        absl::StrCat(PathOf(parent.child), " was moved while it was removed"));
  }
  directory_ = std::move(up);
  bool filled = false;
  MAGNETAR_RETURN_IF_ERROR(RemoveEntry(directory_.get(), parent.child.c_str(), filled));
  // Filled again: whoever writes to it is met at the next turn.
  return absl::OkStatus();
}

std::string TreeRemover::PathOf(absl::string_view name) const {
  constexpr size_t kMaxNames = 8;
  std::string path = path_;
  for (size_t i = 0; i < parents_.size() && i < kMaxNames; ++i) {
    absl::StrAppend(&path, "/", absl::CHexEscape(parents_[i].child));
  }
  if (parents_.size() > kMaxNames) absl::StrAppend(&path, "/...");
  if (!name.empty()) absl::StrAppend(&path, "/", absl::CHexEscape(name));
  return path;
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t limit) {
  return ReadFileAt(AT_FDCWD, path, limit);
}

absl::StatusOr<std::string> ReadFileAt(int directory, const std::string& path, size_t limit) {
  UniqueFd fd(::openat(directory, path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("open ", path));
  std::string out;
  char buffer[16384];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof(buffer));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, absl::StrCat("read ", path));
    }
    if (n == 0) return out;
    out.append(buffer, static_cast<size_t>(n));
    if (out.size() > limit) {
      return absl::ResourceExhaustedError(absl::StrCat(path, " is larger than ", limit, " bytes"));
    }
  }
}

absl::Status WriteExisting(const std::string& path, std::string_view data) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("open ", path));
  const ssize_t n = ::write(fd.get(), data.data(), data.size());
  if (n < 0) return ErrnoStatus(errno, absl::StrCat("write \"", std::string(data), "\" to ", path));
  if (static_cast<size_t>(n) != data.size()) {
    return absl::DataLossError(absl::StrCat("short write to ", path));
  }
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view data, int mode) {
  const std::string temporary = absl::StrCat(path, ".new");
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                     static_cast<mode_t>(mode)));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("create ", temporary));
  absl::Status status = WriteAll(fd.get(), data, temporary);
  if (status.ok() && ::fsync(fd.get()) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("fsync ", temporary));
  }
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("rename to ", path));
  }
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  const std::string parent = ParentOf(path);
  UniqueFd dir(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir.ok()) return ErrnoStatus(errno, absl::StrCat("open ", parent));
  if (::fsync(dir.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", parent));
  return absl::OkStatus();
}

absl::Status MakeDirectories(const std::string& path, int mode) {
  for (size_t at = 1; at <= path.size(); ++at) {
    at = path.find('/', at);
    if (at == std::string::npos) at = path.size();
    const std::string prefix = path.substr(0, at);
    if (::mkdir(prefix.c_str(), static_cast<mode_t>(mode)) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, absl::StrCat("mkdir ", prefix));
    }
  }
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  if (!S_ISDIR(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not a directory"));
  }
  return absl::OkStatus();
}

absl::Status RemoveFile(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("remove ", path));
}

absl::Status RemoveTree(const std::string& path) {
  UniqueFd dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!dir.ok()) {
    if (errno == ENOENT) return absl::OkStatus();
    if (errno == ENOTDIR || errno == ELOOP) return RemoveFile(path);
    return ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  const auto mount_id = MountIdAt(dir.get(), "");
  if (!mount_id.has_value()) return ErrnoStatus(errno, absl::StrCat("statx ", path));
  const std::string parent = ParentOf(path);
  const auto parent_mount = MountIdAt(AT_FDCWD, parent.c_str());
  if (!parent_mount.has_value()) return ErrnoStatus(errno, absl::StrCat("statx ", parent));
  if (*parent_mount != *mount_id) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is a mount point"));
  }
  MAGNETAR_RETURN_IF_ERROR(TreeRemover(std::move(dir), *mount_id, path).Run());
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("remove ", path));
  }
  return absl::OkStatus();
}

}  // namespace magnetar
