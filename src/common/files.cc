#include "magnetar/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
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

struct DirCloser {
  void operator()(DIR* d) const { ::closedir(d); }
};

absl::StatusOr<unsigned> MountIdAt(int dir_fd, const char* name, const std::string& path) {
  struct statx st;
  if (::statx(dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, STATX_MNT_ID, &st) != 0) {
    return ErrnoStatus(errno, absl::StrCat("statx ", path));
  }
  return static_cast<unsigned>(st.stx_mnt_id);
}

absl::Status RemoveChildren(UniqueFd dir_fd, unsigned mount_id, const std::string& path) {
  const int fd = dir_fd.release();
  std::unique_ptr<DIR, DirCloser> dir(::fdopendir(fd));
  if (dir == nullptr) {
    const int err = errno;
    ::close(fd);
    return ErrnoStatus(err, absl::StrCat("open directory ", path));
  }
  // Names first: deleting while reading a directory may skip entries.
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return ErrnoStatus(errno, absl::StrCat("read directory ", path));
  const int parent = ::dirfd(dir.get());
  for (const std::string& name : names) {
    const std::string child_path = absl::StrCat(path, "/", name);
    auto child_mount = MountIdAt(parent, name.c_str(), child_path);
    if (!child_mount.ok()) return child_mount.status();
    if (*child_mount != mount_id) {
      return absl::FailedPreconditionError(absl::StrCat(child_path, " is a mount point"));
    }
    if (::unlinkat(parent, name.c_str(), 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR) return ErrnoStatus(errno, absl::StrCat("remove ", child_path));
    UniqueFd child(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!child.ok()) return ErrnoStatus(errno, absl::StrCat("open ", child_path));
    MAGNETAR_RETURN_IF_ERROR(RemoveChildren(std::move(child), mount_id, child_path));
    if (::unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
      return ErrnoStatus(errno, absl::StrCat("remove ", child_path));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t limit) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
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
  auto mount_id = MountIdAt(dir.get(), "", path);
  if (!mount_id.ok()) return mount_id.status();
  const std::string parent = ParentOf(path);
  auto parent_mount = MountIdAt(AT_FDCWD, parent.c_str(), parent);
  if (!parent_mount.ok()) return parent_mount.status();
  if (*parent_mount != *mount_id) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is a mount point"));
  }
  MAGNETAR_RETURN_IF_ERROR(RemoveChildren(std::move(dir), *mount_id, path));
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("remove ", path));
  }
  return absl::OkStatus();
}

}  // namespace magnetar
