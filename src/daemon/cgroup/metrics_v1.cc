#include <unistd.h>

#include <cstdint>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/files.h"
#include "src/daemon/cgroup/metrics.h"

namespace magnetar::daemon {
namespace {

namespace v2 = io::containerd::cgroups::v2;
using absl::string_view;

// v1 writes "no limit" as the largest number of whole pages.
constexpr uint64_t kNoLimitV1 = 0x7ffffffffffff000 >> 1;

uint64_t Limit(uint64_t value) {
  return value >= kNoLimitV1 ? std::numeric_limits<uint64_t>::max() : value;
}

void SetCpuTimes(string_view key, uint64_t ticks, v2::Metrics& out) {
  static const uint64_t kMicrosecondsPerTick =
      1000000 / static_cast<uint64_t>(::sysconf(_SC_CLK_TCK));
  if (key == "user") out.mutable_cpu()->set_user_usec(ticks * kMicrosecondsPerTick);
  if (key == "system") out.mutable_cpu()->set_system_usec(ticks * kMicrosecondsPerTick);
}

void SetThrottling(string_view key, uint64_t value, v2::Metrics& out) {
  if (key == "nr_periods") out.mutable_cpu()->set_nr_periods(value);
  if (key == "nr_throttled") out.mutable_cpu()->set_nr_throttled(value);
  if (key == "throttled_time") out.mutable_cpu()->set_throttled_usec(value / 1000);
}

// The "total_" lines count the children in, as all of v2's do.
void SetMemoryStat(string_view key, uint64_t value, v2::Metrics& out) {
  using M = v2::MemoryStat;
  static const std::map<string_view, void (M::*)(uint64_t)> kSetters = {
      {"total_rss", &M::set_anon},
      {"total_cache", &M::set_file},
      {"total_rss_huge", &M::set_anon_thp},
      {"total_shmem", &M::set_shmem},
      {"total_mapped_file", &M::set_file_mapped},
      {"total_dirty", &M::set_file_dirty},
      {"total_writeback", &M::set_file_writeback},
      {"total_inactive_anon", &M::set_inactive_anon},
      {"total_active_anon", &M::set_active_anon},
      {"total_inactive_file", &M::set_inactive_file},
      {"total_active_file", &M::set_active_file},
      {"total_unevictable", &M::set_unevictable},
      {"total_pgfault", &M::set_pgfault},
      {"total_pgmajfault", &M::set_pgmajfault},
      {"total_swap", &M::set_swap_usage}};
  const auto it = kSetters.find(key);
  if (it != kSetters.end()) (out.mutable_memory()->*(it->second))(value);
}

void SetOom(string_view key, uint64_t value, v2::Metrics& out) {
  if (key == "oom_kill") out.mutable_memory_events()->set_oom_kill(value);
}

// "8:0 Read 4096", per device and operation; a "Total" line ends the file.
void ReadBlkio(const std::string& path, bool bytes,
               std::map<std::pair<uint64_t, uint64_t>, v2::IOEntry>& entries) {
  auto text = ReadFile(path);
  if (!text.ok()) return;
  for (string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() != 3) continue;
    const std::pair<string_view, string_view> device =
        absl::StrSplit(words[0], absl::MaxSplits(':', 1));
    uint64_t major = 0;
    uint64_t minor = 0;
    uint64_t value = 0;
    if (!absl::SimpleAtoi(device.first, &major) || !absl::SimpleAtoi(device.second, &minor) ||
        !absl::SimpleAtoi(words[2], &value)) {
      continue;
    }
    v2::IOEntry& entry = entries[{major, minor}];
    entry.set_major(major);
    entry.set_minor(minor);
    if (words[1] == "Read") bytes ? entry.set_rbytes(value) : entry.set_rios(value);
    if (words[1] == "Write") bytes ? entry.set_wbytes(value) : entry.set_wios(value);
  }
}

void ReadMemory(const std::string& directory, v2::Metrics& out) {
  const auto file = [&directory](const char* name) {
    return absl::StrCat(directory, "/memory.", name);
  };
  ForEachKey(file("stat"), &SetMemoryStat, out);
  ForEachKey(file("oom_control"), &SetOom, out);
  v2::MemoryStat& memory = *out.mutable_memory();
  memory.set_usage(ReadNumber(file("usage_in_bytes")));
  memory.set_usage_limit(Limit(ReadNumber(file("limit_in_bytes"))));
  memory.set_max_usage(ReadNumber(file("max_usage_in_bytes")));
  out.mutable_memory_events()->set_max(ReadNumber(file("failcnt")));
  // memory.memsw counts memory and swap together.
  const uint64_t both = Limit(ReadNumber(file("memsw.limit_in_bytes")));
  const bool unlimited = both == std::numeric_limits<uint64_t>::max();
  if (unlimited) memory.set_swap_limit(both);
  if (!unlimited && both > memory.usage_limit()) {
    memory.set_swap_limit(both - memory.usage_limit());
  }
}

}  // namespace

void ReadMetricsV1(const Hierarchy& hierarchy, const std::string& directory, v2::Metrics& out) {
  const auto file = [&directory](const char* name) { return absl::StrCat(directory, "/", name); };
  if (hierarchy.Has("cpuacct")) {
    out.mutable_cpu()->set_usage_usec(ReadNumber(file("cpuacct.usage")) / 1000);
    ForEachKey(file("cpuacct.stat"), &SetCpuTimes, out);
  }
  if (hierarchy.Has("cpu")) ForEachKey(file("cpu.stat"), &SetThrottling, out);
  if (hierarchy.Has("memory")) ReadMemory(directory, out);
  if (hierarchy.Has("pids")) {
    out.mutable_pids()->set_current(ReadNumber(file("pids.current")));
    out.mutable_pids()->set_limit(ReadNumber(file("pids.max")));
  }
  if (hierarchy.Has("blkio")) {
    std::map<std::pair<uint64_t, uint64_t>, v2::IOEntry> entries;
    ReadBlkio(file("blkio.throttle.io_service_bytes_recursive"), true, entries);
    ReadBlkio(file("blkio.throttle.io_serviced_recursive"), false, entries);
    for (auto& [device, entry] : entries) *out.mutable_io()->add_usage() = std::move(entry);
  }
}

}  // namespace magnetar::daemon
