#include "guest-agent/task/cgroup.h"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <csignal>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/util/log.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

void CollectPids(const std::string& path, std::vector<int>* pids) {
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat(path, "/cgroup.procs"));
  if (text.ok()) {
    for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipWhitespace())) {
      int pid = 0;
      if (absl::SimpleAtoi(line, &pid) && pid > 0) pids->push_back(pid);
    }
  }
  const std::unique_ptr<DIR, DirectoryCloser> dir(::opendir(path.c_str()));
  if (dir == nullptr) return;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
      CollectPids(absl::StrCat(path, "/", entry->d_name), pids);
    }
  }
}

}  // namespace

uint64_t ReadCgroupCounter(const std::string& file, absl::string_view key) {
  const absl::StatusOr<std::string> text = ReadFile(file);
  if (!text.ok()) return 0;
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipWhitespace())) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    uint64_t value = 0;
    if (pair.first == key && absl::SimpleAtoi(pair.second, &value)) return value;
  }
  return 0;
}

absl::Status KillCgroup(const std::string& path) {
  const absl::Status status = WriteExisting(absl::StrCat(path, "/cgroup.kill"), "1");
  if (absl::IsNotFound(status)) return absl::OkStatus();
  return status;
}

absl::StatusOr<std::vector<int>> CgroupPids(const std::string& path) {
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path);
  std::vector<int> pids;
  CollectPids(path, &pids);
  return pids;
}

absl::Status SignalCgroup(const std::string& path, int signal) {
  const absl::StatusOr<std::vector<int>> pids = CgroupPids(path);
  if (!pids.ok()) return absl::IsNotFound(pids.status()) ? absl::OkStatus() : pids.status();
  for (const int pid : *pids) {
    if (::kill(pid, signal) != 0 && errno != ESRCH) {
      return ErrnoStatus(errno, absl::StrCat("signal ", signal, " to process ", pid));
    }
  }
  return absl::OkStatus();
}

absl::Status SetCgroupFrozen(const std::string& path, bool frozen) {
  return WriteExisting(absl::StrCat(path, "/cgroup.freeze"), frozen ? "1" : "0");
}

absl::Status EnableControllers(const std::string& path) {
  const absl::StatusOr<std::string> controllers =
      ReadFile(absl::StrCat(path, "/cgroup.controllers"));
  if (!controllers.ok()) return controllers.status();
  for (const absl::string_view name :
       absl::StrSplit(absl::StripAsciiWhitespace(*controllers), ' ', absl::SkipEmpty())) {
    // One by one: a controller that cannot be delegated costs only itself.
    const absl::Status status =
        WriteExisting(absl::StrCat(path, "/cgroup.subtree_control"), absl::StrCat("+", name));
    if (!status.ok()) Log(LogLevel::kWarn, "cgroup controller unavailable: ", status.message());
  }
  return absl::OkStatus();
}

}  // namespace magnetar::guest
