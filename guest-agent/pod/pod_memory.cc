#include "guest-agent/pod/pod_memory.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/cgroup.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

// Less than this for all containers runs none.
constexpr uint64_t kMinimumPodBytes = 16 << 20;
// Beside what cannot be reclaimed: for what comes before the memory is taken, and less than what
// the host leaves free of it (kNotSpared in agent_service.cc).
constexpr uint64_t kMargin = 16 << 20;

}  // namespace

absl::Status PodMemory::Start(uint64_t total, uint64_t reserve) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (total < reserve + kMinimumPodBytes) {
    return absl::FailedPreconditionError(absl::StrCat("a VM of ", total >> 20, " MiB less ",
                                                      reserve >> 20,
                                                      " MiB of reserve has no room for a pod"));
  }
  // Repeated by a daemon that does not know whether it was done: what was added since stays.
  if (total_ == 0) total_ = total;
  reserve_ = reserve;
  return Write();
}

absl::Status PodMemory::SetAdded(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (total_ == 0) return absl::FailedPreconditionError("the sandbox is not set up");
  added_ = bytes;
  return Write();
}

absl::Status PodMemory::SetHugePages(uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  huge_pages_ = bytes;
  return Write();
}

bool PodMemory::fits() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return written_ == Wanted();
}

uint64_t PodMemory::Wanted() const {
  const uint64_t away = reserve_ + huge_pages_;
  return total_ + added_ - std::min(total_ + added_, away);
}

absl::Status PodMemory::Write() {
  uint64_t limit = Wanted();
  if (limit < written_) {
    // The kernel would kill until the limit is kept. What can be reclaimed is.
    const std::string counters = absl::StrCat(cgroup_, "/memory.stat");
    uint64_t used = kMargin;
    for (const char* key : {"anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables"}) {
      used += ReadCgroupCounter(counters, key);
    }
    limit = std::max(limit, std::min(written_, used));
  }
  MAGNETAR_RETURN_IF_ERROR(
      WriteExisting(absl::StrCat(cgroup_, "/memory.max"), absl::StrCat(limit)));
  written_ = limit;
  return absl::OkStatus();
}

}  // namespace magnetar::guest
