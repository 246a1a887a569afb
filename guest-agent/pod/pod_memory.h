#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace magnetar::guest {

// What the pod's containers may use of the guest's memory, all together: the one owner of
// memory.max in the pod's cgroup. Bytes; blocking calls, safe from everywhere.
class PodMemory {
 public:
  // `cgroup`: the pod's directory.
  explicit PodMemory(std::string cgroup) : cgroup_(std::move(cgroup)) {}

  // The guest booted with `total`, of which `reserve` is for others. FAILED_PRECONDITION: that
  // leaves no room for a pod.
  absl::Status Start(uint64_t total, uint64_t reserve);
  // What the host has added since, and does not want back. FAILED_PRECONDITION before Start.
  absl::Status SetAdded(uint64_t bytes);
  // What is kept in huge pages, which limits of their own bound.
  absl::Status SetHugePages(uint64_t bytes);
  // Whether the containers are held to what there is to be, so that the rest of the memory can go.
  bool fits() const;

 private:
  uint64_t Wanted() const;
  absl::Status Write();

  const std::string cgroup_;
  mutable std::mutex mutex_;
  uint64_t total_ = 0;  // 0: not started
  uint64_t reserve_ = 0;
  uint64_t added_ = 0;
  uint64_t huge_pages_ = 0;
  uint64_t written_ = 0;
};

}  // namespace magnetar::guest
