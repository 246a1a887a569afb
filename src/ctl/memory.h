#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace magnetar::ctl {

// Memory of one process in bytes.
struct Memory {
  uint64_t pss = 0;  // shared pages count by their share
  uint64_t rss = 0;
};

// From the text of a /proc/<pid>/smaps_rollup. DATA_LOSS if it has no such lines.
absl::StatusOr<Memory> ParseSmapsRollup(const std::string& text);

// NOT_FOUND if there is no such process; PERMISSION_DENIED needs root.
absl::StatusOr<Memory> MemoryOf(pid_t pid);

// "35.2 MiB".
std::string FormatBytes(uint64_t bytes);

}  // namespace magnetar::ctl
