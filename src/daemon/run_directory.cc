#include "src/daemon/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

absl::Status MakeRunDirectory(const std::string& path) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(path, 0711));
  // 0711: VMMs, each under a uid of its own, reach their directories below.
  if (::chmod(path.c_str(), 0711) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return absl::OkStatus();
}

namespace {

// DEADLINE_EXCEEDED: someone else has it all the time.
absl::Status LockWithin(std::chrono::milliseconds patience, const std::shared_ptr<UniqueFd>& fd) {
  std::promise<int> promise;
  std::future<int> error = promise.get_future();
  // flock knows no deadline. If it waits on, the caller gives up, and its process ends.
  std::thread([fd, promise = std::move(promise)]() mutable {
    int result;
    do {
      result = ::flock(fd->get(), LOCK_EX);
    } while (result != 0 && errno == EINTR);
    promise.set_value(result == 0 ? 0 : errno);
  }).detach();
  if (error.wait_for(patience) != std::future_status::ready) {
    return absl::DeadlineExceededError("locked by another process");
  }
  const int why = error.get();
  return why == 0 ? absl::OkStatus() : ErrnoStatus(why, "lock");
}

}  // namespace

absl::StatusOr<UniqueFd> LockRunDirectory(const std::string& run_dir,
                                          std::chrono::milliseconds patience) {
  auto fd = std::make_shared<UniqueFd>(::open(run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd->ok()) return ErrnoStatus(errno, absl::StrCat("open ", run_dir));
  if (::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat("lock ", run_dir));
    const absl::Status locked = LockWithin(patience, fd);
    if (absl::IsDeadlineExceeded(locked)) {
      return absl::AlreadyExistsError(absl::StrCat("another daemon holds ", run_dir));
    }
    if (!locked.ok()) return Annotate(locked, run_dir);
  }
  return std::move(*fd);
}

}  // namespace magnetar::daemon
