#include "src/daemon/sandbox/process.h"

#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

namespace {

struct Dying {
  std::string name;
  pid_t pid;
  UniqueFd fd;
};

absl::Status WaitUntil(const Dying& process, std::chrono::steady_clock::time_point deadline) {
  pollfd poll_fd{process.fd.get(), POLLIN, 0};
  int n;
  do {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    n = ::poll(&poll_fd, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
  } while (n < 0 && errno == EINTR);
  if (n < 0) return ErrnoStatus(errno, "poll pidfd");
  if (n > 0) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat(process.name, " (pid ", process.pid, ") does not end after SIGKILL"));
}

}  // namespace

absl::Status KillAndWait(const std::vector<RecordedProcess>& processes,
                         std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  absl::Status result;
  std::vector<Dying> dying;
  for (const RecordedProcess& process : processes) {
    absl::StatusOr<UniqueFd> fd = OpenProcess(process.identity);
    if (absl::IsNotFound(fd.status())) continue;
    if (!fd.ok()) {
      result.Update(Annotate(fd.status(), process.name));
      continue;
    }
    result.Update(Annotate(SignalProcess(fd->get(), SIGKILL), absl::StrCat("kill ", process.name)));
    dying.push_back({process.name, process.identity.pid, *std::move(fd)});
  }
  for (const Dying& process : dying) result.Update(WaitUntil(process, deadline));
  return result;
}

}  // namespace magnetar::daemon
