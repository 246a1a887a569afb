#include "guest-agent/storage/huge_pages.h"

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/task/cgroup.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

// What the pod keeps beside its huge pages.
constexpr uint64_t kLeftToThePod = 16 << 20;
constexpr uint64_t kMaxPages = uint64_t{1} << 40;

absl::StatusOr<uint64_t> ReadCount(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  uint64_t number = 0;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &number)) {
    return absl::InternalError(absl::StrCat(path, " holds no number"));
  }
  return number;
}

std::string PoolFile(const std::string& pools, uint64_t page_size) {
  return absl::StrCat(pools, "/hugepages-", page_size >> 10, "kB/nr_hugepages");
}

}  // namespace

// Those who are in the pod's memory already must still fit.
absl::Status HugePagePools::CheckMemory(uint64_t bytes) const {
  const absl::StatusOr<uint64_t> most = ReadCount(absl::StrCat(cgroup_, "/memory.max"));
  if (!most.ok()) return most.status();
  const std::string counters = absl::StrCat(cgroup_, "/memory.stat");
  const uint64_t used = ReadCgroupCounter(counters, "anon") + ReadCgroupCounter(counters, "shmem");
  if (*most > used + kLeftToThePod && bytes <= *most - used - kLeftToThePod) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat("the VM has ", *most >> 20,
                                                    " MiB for its containers, of which ",
                                                    used >> 20, " MiB are in use"));
}

// As many as there are now; what is given back late is seen with the next change.
absl::Status HugePagePools::TakeFromPod(uint64_t page_size, uint64_t pages) {
  taken_[page_size] = pages;
  uint64_t bytes = 0;
  for (const auto& [size, count] : taken_) bytes += size * count;
  return memory_->SetHugePages(bytes);
}

absl::Status HugePagePools::SetPool(uint64_t page_size) {
  uint64_t wanted = 0;
  for (const auto& [id, sizes] : pages_) {
    const auto found = sizes.find(page_size);
    if (found != sizes.end()) wanted += found->second;
  }
  const std::string file = PoolFile(pools_, page_size);
  absl::StatusOr<uint64_t> now = ReadCount(file);
  if (absl::IsNotFound(now.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("the guest's kernel has no pages of ", page_size >> 10, " KiB"));
  }
  if (!now.ok()) return now.status();
  if (wanted > *now) MAGNETAR_RETURN_IF_ERROR(CheckMemory((wanted - *now) * page_size));
  MAGNETAR_RETURN_IF_ERROR(WriteExisting(file, absl::StrCat(wanted)));
  now = ReadCount(file);
  if (!now.ok()) return now.status();
  MAGNETAR_RETURN_IF_ERROR(TakeFromPod(page_size, *now));
  if (*now >= wanted) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the guest's kernel finds room for ", *now, " of ", wanted, " pages"));
}

absl::Status HugePagePools::ReserveLocked(const std::string& container_id,
                                          const agent::v1::HugePages& wanted) {
  const uint64_t size = wanted.page_size();
  if (size < 1024 || wanted.bytes() / size > kMaxPages) {
    return absl::InvalidArgumentError("no huge pages");
  }
  pages_[container_id][size] += (wanted.bytes() + size - 1) / size;
  return SetPool(size);
}

absl::Status HugePagePools::Reserve(
    const std::string& container_id,
    const google::protobuf::RepeatedPtrField<agent::v1::HugePages>& wanted) {
  const std::lock_guard lock(mutex_);
  MAGNETAR_RETURN_IF_ERROR(ReleaseLocked(container_id));
  for (const agent::v1::HugePages& pages : wanted) {
    absl::Status status = ReserveLocked(container_id, pages);
    if (status.ok()) continue;
    status = Annotate(status, absl::StrCat(pages.field(), ": ", pages.bytes() >> 10,
                                           " KiB in pages of ", pages.page_size() >> 10, " KiB"));
    const absl::Status undone = ReleaseLocked(container_id);
    if (undone.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat(status.message(), "; undo: ", undone.message()));
  }
  return absl::OkStatus();
}

absl::Status HugePagePools::Release(const std::string& container_id) {
  const std::lock_guard lock(mutex_);
  return ReleaseLocked(container_id);
}

absl::Status HugePagePools::ReleaseLocked(const std::string& container_id) {
  const auto found = pages_.find(container_id);
  if (found == pages_.end()) return absl::OkStatus();
  const std::map<uint64_t, uint64_t> sizes = std::move(found->second);
  pages_.erase(found);
  absl::Status first;
  for (const auto& [size, pages] : sizes) {
    // One that the guest does not have was not taken.
    if (taken_.contains(size)) first.Update(SetPool(size));
  }
  return first;
}

}  // namespace magnetar::guest
