#include <sys/stat.h>

#include <cerrno>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/task/cgroup.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

namespace v2 = io::containerd::cgroups::v2;

using FlatKeyed = std::map<std::string, uint64_t, std::less<>>;

uint64_t ToNumber(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  if (text == "max") return std::numeric_limits<uint64_t>::max();
  uint64_t value = 0;
  return absl::SimpleAtoi(text, &value) ? value : 0;
}

// A single value; 0 if the file is absent.
uint64_t ReadNumber(const std::string& file) {
  const absl::StatusOr<std::string> text = ReadFile(file);
  return text.ok() ? ToNumber(*text) : 0;
}

FlatKeyed ReadFlatKeyed(const std::string& file) {
  FlatKeyed out;
  const absl::StatusOr<std::string> text = ReadFile(file);
  if (!text.ok()) return out;
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipWhitespace())) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    out[std::string(pair.first)] = ToNumber(pair.second);
  }
  return out;
}

uint64_t At(const FlatKeyed& values, absl::string_view key) {
  const auto it = values.find(key);
  return it == values.end() ? 0 : it->second;
}

// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; false if there is no such file.
bool ReadPressure(const std::string& file, v2::PSIStats* out) {
  const absl::StatusOr<std::string> text = ReadFile(file);
  if (!text.ok()) return false;
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipWhitespace())) {
    v2::PSIData* data = absl::StartsWith(line, "some ")   ? out->mutable_some()
                        : absl::StartsWith(line, "full ") ? out->mutable_full()
                                                          : nullptr;
    if (data == nullptr) continue;
    for (const absl::string_view field : absl::StrSplit(line, ' ')) {
      const std::pair<absl::string_view, absl::string_view> pair = absl::StrSplit(field, '=');
      double average = 0;
      if (pair.first == "total") {
        data->set_total(ToNumber(pair.second));
      } else if (absl::SimpleAtod(pair.second, &average)) {
        if (pair.first == "avg10") data->set_avg10(average);
        if (pair.first == "avg60") data->set_avg60(average);
        if (pair.first == "avg300") data->set_avg300(average);
      }
    }
  }
  return true;
}

struct Counter {
  const char* key;
  void (v2::MemoryStat::*set)(uint64_t);
};

constexpr Counter kMemoryCounters[] = {
    {"anon", &v2::MemoryStat::set_anon},
    {"file", &v2::MemoryStat::set_file},
    {"kernel_stack", &v2::MemoryStat::set_kernel_stack},
    {"slab", &v2::MemoryStat::set_slab},
    {"sock", &v2::MemoryStat::set_sock},
    {"shmem", &v2::MemoryStat::set_shmem},
    {"file_mapped", &v2::MemoryStat::set_file_mapped},
    {"file_dirty", &v2::MemoryStat::set_file_dirty},
    {"file_writeback", &v2::MemoryStat::set_file_writeback},
    {"anon_thp", &v2::MemoryStat::set_anon_thp},
    {"inactive_anon", &v2::MemoryStat::set_inactive_anon},
    {"active_anon", &v2::MemoryStat::set_active_anon},
    {"inactive_file", &v2::MemoryStat::set_inactive_file},
    {"active_file", &v2::MemoryStat::set_active_file},
    {"unevictable", &v2::MemoryStat::set_unevictable},
    {"slab_reclaimable", &v2::MemoryStat::set_slab_reclaimable},
    {"slab_unreclaimable", &v2::MemoryStat::set_slab_unreclaimable},
    {"pgfault", &v2::MemoryStat::set_pgfault},
    {"pgmajfault", &v2::MemoryStat::set_pgmajfault},
    {"workingset_refault", &v2::MemoryStat::set_workingset_refault},
    {"workingset_activate", &v2::MemoryStat::set_workingset_activate},
    {"workingset_nodereclaim", &v2::MemoryStat::set_workingset_nodereclaim},
    {"pgrefill", &v2::MemoryStat::set_pgrefill},
    {"pgscan", &v2::MemoryStat::set_pgscan},
    {"pgsteal", &v2::MemoryStat::set_pgsteal},
    {"pgactivate", &v2::MemoryStat::set_pgactivate},
    {"pgdeactivate", &v2::MemoryStat::set_pgdeactivate},
    {"pglazyfree", &v2::MemoryStat::set_pglazyfree},
    {"pglazyfreed", &v2::MemoryStat::set_pglazyfreed},
    {"thp_fault_alloc", &v2::MemoryStat::set_thp_fault_alloc},
    {"thp_collapse_alloc", &v2::MemoryStat::set_thp_collapse_alloc},
    {"workingset_refault_anon", &v2::MemoryStat::set_workingset_refault_anon},
    {"workingset_refault_file", &v2::MemoryStat::set_workingset_refault_file},
    {"workingset_activate_anon", &v2::MemoryStat::set_workingset_activate_anon},
    {"workingset_activate_file", &v2::MemoryStat::set_workingset_activate_file},
};

void ReadCpu(const std::string& path, v2::Metrics* out) {
  const FlatKeyed stat = ReadFlatKeyed(absl::StrCat(path, "/cpu.stat"));
  v2::CPUStat* cpu = out->mutable_cpu();
  cpu->set_usage_usec(At(stat, "usage_usec"));
  cpu->set_user_usec(At(stat, "user_usec"));
  cpu->set_system_usec(At(stat, "system_usec"));
  cpu->set_nr_periods(At(stat, "nr_periods"));
  cpu->set_nr_throttled(At(stat, "nr_throttled"));
  cpu->set_throttled_usec(At(stat, "throttled_usec"));
  cpu->set_nr_bursts(At(stat, "nr_bursts"));
  cpu->set_burst_usec(At(stat, "burst_usec"));
  if (!ReadPressure(absl::StrCat(path, "/cpu.pressure"), cpu->mutable_psi())) cpu->clear_psi();
}

void ReadMemory(const std::string& path, v2::Metrics* out) {
  const FlatKeyed stat = ReadFlatKeyed(absl::StrCat(path, "/memory.stat"));
  if (stat.empty()) return;
  v2::MemoryStat* memory = out->mutable_memory();
  for (const Counter& counter : kMemoryCounters) (memory->*counter.set)(At(stat, counter.key));
  memory->set_usage(ReadNumber(absl::StrCat(path, "/memory.current")));
  memory->set_usage_limit(ReadNumber(absl::StrCat(path, "/memory.max")));
  memory->set_max_usage(ReadNumber(absl::StrCat(path, "/memory.peak")));
  memory->set_swap_usage(ReadNumber(absl::StrCat(path, "/memory.swap.current")));
  memory->set_swap_limit(ReadNumber(absl::StrCat(path, "/memory.swap.max")));
  memory->set_swap_max_usage(ReadNumber(absl::StrCat(path, "/memory.swap.peak")));
  if (!ReadPressure(absl::StrCat(path, "/memory.pressure"), memory->mutable_psi())) {
    memory->clear_psi();
  }
  const FlatKeyed events = ReadFlatKeyed(absl::StrCat(path, "/memory.events"));
  v2::MemoryEvents* counted = out->mutable_memory_events();
  counted->set_low(At(events, "low"));
  counted->set_high(At(events, "high"));
  counted->set_max(At(events, "max"));
  counted->set_oom(At(events, "oom"));
  counted->set_oom_kill(At(events, "oom_kill"));
  counted->set_oom_group_kill(At(events, "oom_group_kill"));
}

// "8:0 rbytes=90112 wbytes=0 rios=2 wios=0 dbytes=0 dios=0"
void ReadIo(const std::string& path, v2::Metrics* out) {
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat(path, "/io.stat"));
  if (!text.ok()) return;
  v2::IOStat* io = out->mutable_io();
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipWhitespace())) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
    const std::pair<absl::string_view, absl::string_view> device =
        absl::StrSplit(fields.front(), absl::MaxSplits(':', 1));
    v2::IOEntry* entry = io->add_usage();
    entry->set_major(ToNumber(device.first));
    entry->set_minor(ToNumber(device.second));
    for (const absl::string_view field : fields) {
      const std::pair<absl::string_view, absl::string_view> pair =
          absl::StrSplit(field, absl::MaxSplits('=', 1));
      const uint64_t value = ToNumber(pair.second);
      if (pair.first == "rbytes") entry->set_rbytes(value);
      if (pair.first == "wbytes") entry->set_wbytes(value);
      if (pair.first == "rios") entry->set_rios(value);
      if (pair.first == "wios") entry->set_wios(value);
    }
  }
  if (!ReadPressure(absl::StrCat(path, "/io.pressure"), io->mutable_psi())) io->clear_psi();
}

}  // namespace

absl::StatusOr<v2::Metrics> ReadCgroupMetrics(const std::string& path) {
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path);
  v2::Metrics metrics;
  metrics.mutable_pids()->set_current(ReadNumber(absl::StrCat(path, "/pids.current")));
  metrics.mutable_pids()->set_limit(ReadNumber(absl::StrCat(path, "/pids.max")));
  ReadCpu(path, &metrics);
  ReadMemory(path, &metrics);
  ReadIo(path, &metrics);
  return metrics;
}

}  // namespace magnetar::guest
