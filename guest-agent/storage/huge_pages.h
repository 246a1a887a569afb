#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest-agent/pod/pod_memory.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

// Huge pages that containers were promised, taken from the guest's memory while they live, and from
// what its pod may use of it. Blocking calls, safe from everywhere.
// Facts: Linux, Documentation/admin-guide/mm/hugetlbpage.rst.
class HugePagePools {
 public:
  // `pools`: /sys/kernel/mm/hugepages; `cgroup`: the pod's.
  HugePagePools(std::string pools, std::string cgroup, PodMemory* memory)
      : pools_(std::move(pools)), cgroup_(std::move(cgroup)), memory_(memory) {}

  // FAILED_PRECONDITION: the guest has no pages of a size, or not the memory for them; the error
  // says what they are for, and nothing is taken.
  absl::Status Reserve(const std::string& container_id,
                       const google::protobuf::RepeatedPtrField<agent::v1::HugePages>& wanted);
  // Gives back the container's; pages in which there still is something with the last file that has
  // them. Repeatable.
  absl::Status Release(const std::string& container_id);

 private:
  absl::Status ReserveLocked(const std::string& container_id, const agent::v1::HugePages& wanted);
  absl::Status ReleaseLocked(const std::string& container_id);
  absl::Status SetPool(uint64_t page_size);
  absl::Status CheckMemory(uint64_t bytes) const;
  absl::Status TakeFromPod(uint64_t page_size, uint64_t pages);

  const std::string pools_;
  const std::string cgroup_;
  PodMemory* const memory_;
  std::mutex mutex_;
  std::map<std::string, std::map<uint64_t, uint64_t>> pages_;  // by container and page size
  std::map<uint64_t, uint64_t> taken_;                         // pages, by their size
};

}  // namespace magnetar::guest
