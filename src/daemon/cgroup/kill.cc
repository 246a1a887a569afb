#include "src/daemon/cgroup/kill.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {
namespace {

using Clock = std::chrono::steady_clock;

absl::StatusOr<std::set<int>> ProcessesInAll(const std::vector<std::string>& directories) {
  std::set<int> all;
  for (const std::string& directory : directories) {
    auto pids = ProcessesIn(directory);
    if (!pids.ok()) return pids.status();
    all.insert(pids->begin(), pids->end());
  }
  return all;
}

int MillisecondsUntil(Clock::time_point end) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
  return static_cast<int>(std::max<decltype(left)>(left, 0));
}

// A zombie has; its parent may take its time.
bool HasEnded(const UniqueFd& pidfd) {
  pollfd p = {.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  return ::poll(&p, 1, 0) == 1;
}

// Waits for all of them, or until `end`.
void AwaitExits(const std::map<int, UniqueFd>& processes, Clock::time_point end) {
  for (const auto& [pid, pidfd] : processes) {
    pollfd p = {.fd = pidfd.get(), .events = POLLIN, .revents = 0};
    while (::poll(&p, 1, MillisecondsUntil(end)) < 0 && errno == EINTR) {
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<int>> ProcessesIn(const std::string& directory) {
  std::vector<int> pids;
  auto text = ReadFile(absl::StrCat(directory, "/cgroup.procs"));
  if (text.ok()) {
    for (absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
      int pid = 0;
      if (absl::SimpleAtoi(line, &pid) && pid > 0) pids.push_back(pid);
    }
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  std::unique_ptr<DIR, DirectoryCloser> open(::opendir(directory.c_str()));
  if (open == nullptr) return pids;
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string name = entry->d_name;
    if (entry->d_type != DT_DIR || name == "." || name == "..") continue;
    auto below = ProcessesIn(absl::StrCat(directory, "/", name));
    if (!below.ok()) return below.status();
    pids.insert(pids.end(), below->begin(), below->end());
  }
  return pids;
}

absl::Status KillProcesses(const std::vector<std::string>& directories,
                           std::chrono::milliseconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  for (const std::string& directory : directories) {
    // v1 delivers no signal to the frozen; v2's cgroup.kill leaves no gap for a fork. Both
    // files are where they are: their absence is no error.
    (void)WriteExisting(absl::StrCat(directory, "/freezer.state"), "THAWED");
    (void)WriteExisting(absl::StrCat(directory, "/cgroup.kill"), "1");
  }
  while (true) {
    auto pids = ProcessesInAll(directories);
    if (!pids.ok()) return pids.status();
    std::map<int, UniqueFd> processes;
    for (int pid : *pids) {
      UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
      if (!pidfd.ok()) {
        if (errno == ESRCH) continue;
        return ErrnoStatus(errno, absl::StrCat("pidfd_open of ", pid));
      }
      if (!HasEnded(pidfd)) processes.emplace(pid, std::move(pidfd));
    }
    // The pid may have been somebody else's by the time it was opened.
    auto still = ProcessesInAll(directories);
    if (!still.ok()) return still.status();
    std::erase_if(processes, [&still](const auto& p) { return !still->contains(p.first); });
    if (processes.empty()) return absl::OkStatus();
    if (Clock::now() >= end) {
      return absl::DeadlineExceededError(absl::StrCat("processes that SIGKILL did not end within ",
                                                      limit.count(),
                                                      " ms: ", absl::StrJoin(*still, ", ")));
    }
    for (const auto& [pid, pidfd] : processes) {
      ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
    }
    AwaitExits(processes, end);
  }
}

}  // namespace magnetar::daemon
