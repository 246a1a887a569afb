#include "src/ctl/memory.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "magnetar/files.h"

namespace magnetar::ctl {

absl::StatusOr<Memory> ParseSmapsRollup(const std::string& text) {
  Memory memory;
  bool found = false;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t kib = 0;
    if (words.size() != 3 || words[2] != "kB" || !absl::SimpleAtoi(words[1], &kib)) continue;
    if (words[0] == "Pss:") memory.pss = kib << 10;
    if (words[0] == "Rss:") memory.rss = kib << 10;
    found = true;
  }
  if (!found) return absl::DataLossError("smaps_rollup has no sizes");
  return memory;
}

absl::StatusOr<Memory> MemoryOf(pid_t pid) {
  auto text = ReadFile(absl::StrCat("/proc/", pid, "/smaps_rollup"));
  if (!text.ok()) return text.status();
  return ParseSmapsRollup(*text);
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < uint64_t{1} << 20) return absl::StrFormat("%.1f KiB", bytes / 1024.0);
  if (bytes < uint64_t{1} << 30) return absl::StrFormat("%.1f MiB", bytes / 1048576.0);
  return absl::StrFormat("%.2f GiB", bytes / 1073741824.0);
}

}  // namespace magnetar::ctl
