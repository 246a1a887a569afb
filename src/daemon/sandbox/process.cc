#include "src/daemon/sandbox/process.h"

#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

absl::Status KillAndWait(const std::vector<RecordedProcess>& processes,
                         std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (const RecordedProcess& process : processes) {
    absl::StatusOr<UniqueFd> fd = OpenProcess(process.identity);
    if (absl::IsNotFound(fd.status())) continue;
    if (!fd.ok()) return Annotate(fd.status(), process.name);
    absl::Status status = SignalProcess(fd->get(), SIGKILL);
    if (!status.ok()) return Annotate(status, absl::StrCat("kill ", process.name));
    pollfd poll_fd{fd->get(), POLLIN, 0};
    int n;
    do {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      n = ::poll(&poll_fd, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
    } while (n < 0 && errno == EINTR);
    if (n < 0) return ErrnoStatus(errno, "poll pidfd");
    if (n == 0) {
      return absl::DeadlineExceededError(absl::StrCat(process.name, " (pid ", process.identity.pid,
                                                      ") does not end after SIGKILL"));
    }
  }
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
