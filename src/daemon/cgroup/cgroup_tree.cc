#include "src/daemon/cgroup/cgroup_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {
namespace {

constexpr char kMark[] = "trusted.magnetar";

absl::Status MakeOne(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0755) != 0) {
    if (errno == EEXIST) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("make cgroup ", directory));
  }
  // A file system without such attributes only keeps an empty parent longer.
  ::setxattr(directory.c_str(), kMark, "1", 1, 0);
  return absl::OkStatus();
}

bool IsMarked(const std::string& directory) {
  return ::getxattr(directory.c_str(), kMark, nullptr, 0) >= 0;
}

absl::Status InheritCpuset(const std::string& parent, const std::string& directory) {
  for (const char* file : {"cpuset.cpus", "cpuset.mems"}) {
    const std::string own = absl::StrCat(directory, "/", file);
    auto set = ReadFile(own);
    if (absl::IsNotFound(set.status())) continue;
    if (!set.ok()) return set.status();
    if (!absl::StripAsciiWhitespace(*set).empty()) continue;
    auto inherited = ReadFile(absl::StrCat(parent, "/", file));
    if (!inherited.ok()) return inherited.status();
    MAGNETAR_RETURN_IF_ERROR(
        WriteExisting(own, std::string(absl::StripAsciiWhitespace(*inherited))));
  }
  return absl::OkStatus();
}

std::vector<std::string> Words(const std::string& path) {
  auto text = ReadFile(path);
  if (!text.ok()) return {};
  return absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
}

bool Contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

absl::Status EnableControllers(const std::string& directory,
                               const std::vector<std::string>& controllers,
                               const std::vector<std::string>& required) {
  const std::vector<std::string> available = Words(absl::StrCat(directory, "/cgroup.controllers"));
  const std::string subtree = absl::StrCat(directory, "/cgroup.subtree_control");
  const std::vector<std::string> enabled = Words(subtree);
  for (const std::string& controller : controllers) {
    if (Contains(enabled, controller)) continue;
    absl::Status status;
    if (Contains(available, controller)) {
      status = WriteExisting(subtree, absl::StrCat("+", controller));
    } else {
      status = absl::FailedPreconditionError(
          absl::StrCat("cgroup ", directory, " has no controller ", controller));
    }
    if (!status.ok() && Contains(required, controller)) return status;
  }
  return absl::OkStatus();
}

// Until v2 tells that the last process has left; v1 tells nothing, so there it is a pause.
void AwaitChange(const std::string& directory) {
  const std::string events = absl::StrCat(directory, "/cgroup.events");
  UniqueFd fd(::open(events.c_str(), O_RDONLY | O_CLOEXEC));
  pollfd p = {.fd = fd.get(), .events = POLLPRI, .revents = 0};
  ::poll(&p, 1, 20);
}

// A cgroup's own files go with it, so only its directories are removed.
absl::Status RemoveRecursively(const std::string& directory) {
  {
    std::unique_ptr<DIR, DirectoryCloser> open(::opendir(directory.c_str()));
    if (open == nullptr) {
      if (errno == ENOENT) return absl::OkStatus();
      return ErrnoStatus(errno, absl::StrCat("open cgroup ", directory));
    }
    while (const dirent* entry = ::readdir(open.get())) {
      const std::string name = entry->d_name;
      if (entry->d_type != DT_DIR || name == "." || name == "..") continue;
      MAGNETAR_RETURN_IF_ERROR(RemoveRecursively(absl::StrCat(directory, "/", name)));
    }
  }
  // A process that is gone may hold its cgroup for some microseconds more.
  for (int attempts = 0; attempts < 50; ++attempts) {
    if (::rmdir(directory.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    if (errno != EBUSY) return ErrnoStatus(errno, absl::StrCat("remove cgroup ", directory));
    AwaitChange(directory);
  }
  return absl::FailedPreconditionError(absl::StrCat("cgroup ", directory, " still has processes"));
}

}  // namespace

absl::Status MakePath(const Hierarchy& hierarchy, const std::string& path,
                      const std::vector<std::string>& controllers,
                      const std::vector<std::string>& required) {
  std::string directory = hierarchy.path;
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    const std::string parent = directory;
    absl::StrAppend(&directory, "/", part);
    if (hierarchy.v2) {
      MAGNETAR_RETURN_IF_ERROR(EnableControllers(parent, controllers, required));
    }
    MAGNETAR_RETURN_IF_ERROR(MakeOne(directory));
    if (hierarchy.Has("cpuset")) MAGNETAR_RETURN_IF_ERROR(InheritCpuset(parent, directory));
  }
  return absl::OkStatus();
}

absl::Status RemovePath(const Hierarchy& hierarchy, const std::string& path) {
  MAGNETAR_RETURN_IF_ERROR(RemoveRecursively(absl::StrCat(hierarchy.path, "/", path)));
  std::string parent = path;
  for (size_t slash = parent.rfind('/'); slash != std::string::npos; slash = parent.rfind('/')) {
    parent.resize(slash);
    const std::string directory = absl::StrCat(hierarchy.path, "/", parent);
    // Somebody else's, or still in use.
    if (!IsMarked(directory) || ::rmdir(directory.c_str()) != 0) break;
  }
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
