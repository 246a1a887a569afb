#include "guest-agent/storage/share_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/util/log.h"

namespace magnetar::guest {
namespace {

// As long as a request or an answer may be. Linux allocates that much in one piece for each that
// carries data (9p-fcall-cache), and eight pages are the most that it does not fail to find.
constexpr int kMessageBytes = 32 << 10;

}  // namespace

void ShareStream::Offer(UniqueFd stream) {
  const std::lock_guard lock(mutex_);
  if (came_) {
    Log(LogLevel::kWarn, "a second stream of the shared directory is refused");
    return;
  }
  came_ = true;
  stream_ = std::move(stream);
  arrived_.notify_all();
}

absl::StatusOr<UniqueFd> ShareStream::Take(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  if (!arrived_.wait_for(lock, timeout, [this] { return stream_.ok(); })) {
    return absl::DeadlineExceededError("the host hands over no stream");
  }
  return std::move(stream_);
}

absl::Status MountNinep(const UniqueFd& stream, const std::string& target) {
  LoadModulesFor("9p");
  // access=client: this kernel checks permissions, and tells in whose name it asks. cache=mmap:
  // what a program maps, so also the program itself, is kept while it is in use; all else is asked
  // for each time, so that it is what the host has.
  const std::string options =
      absl::StrCat("trans=fd,rfdno=", stream.get(), ",wfdno=", stream.get(),
                   ",version=9p2000.L,access=client,cache=mmap,msize=", kMessageBytes);
  return Mount("shared", target, "9p", 0, options);
}

}  // namespace magnetar::guest
