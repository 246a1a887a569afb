#include "src/daemon/sandbox/environment.h"

#include "absl/status/status.h"

namespace magnetar::daemon {

absl::StatusOr<uint32_t> UidPool::Take() {
  const std::lock_guard lock(mutex_);
  uint32_t uid = base_;
  for (const uint32_t used : used_) {
    if (used < uid) continue;
    if (used > uid) break;
    ++uid;
  }
  if (uid - base_ >= count_) {
    return absl::ResourceExhaustedError("every uid for VMs is in use (vm.uid_count)");
  }
  used_.insert(uid);
  return uid;
}

void UidPool::Reserve(uint32_t uid) {
  const std::lock_guard lock(mutex_);
  used_.insert(uid);
}

void UidPool::Give(uint32_t uid) {
  const std::lock_guard lock(mutex_);
  used_.erase(uid);
}

}  // namespace magnetar::daemon
