#include "src/daemon/cgroup/metrics.h"

#include <cstdint>
#include <limits>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/files.h"

namespace magnetar::daemon {
namespace {

namespace v2 = io::containerd::cgroups::v2;
using absl::string_view;

// Keys of a "key value" file and the setters of their fields.
template <typename Message>
using Setters = std::map<string_view, void (Message::*)(uint64_t)>;

template <typename Message>
void Apply(const Setters<Message>& setters, string_view key, uint64_t value, Message& message) {
  const auto it = setters.find(key);
  if (it != setters.end()) (message.*(it->second))(value);
}

void SetCpu(string_view key, uint64_t value, v2::Metrics& out) {
  static const Setters<v2::CPUStat> kSetters = {
      {"usage_usec", &v2::CPUStat::set_usage_usec},
      {"user_usec", &v2::CPUStat::set_user_usec},
      {"system_usec", &v2::CPUStat::set_system_usec},
      {"nr_periods", &v2::CPUStat::set_nr_periods},
      {"nr_throttled", &v2::CPUStat::set_nr_throttled},
      {"throttled_usec", &v2::CPUStat::set_throttled_usec},
      {"nr_bursts", &v2::CPUStat::set_nr_bursts},
      {"burst_usec", &v2::CPUStat::set_burst_usec}};
  Apply(kSetters, key, value, *out.mutable_cpu());
}

void SetMemory(string_view key, uint64_t value, v2::Metrics& out) {
  using M = v2::MemoryStat;
  static const Setters<M> kSetters = {
      {"anon", &M::set_anon},
      {"file", &M::set_file},
      {"kernel_stack", &M::set_kernel_stack},
      {"slab", &M::set_slab},
      {"sock", &M::set_sock},
      {"shmem", &M::set_shmem},
      {"file_mapped", &M::set_file_mapped},
      {"file_dirty", &M::set_file_dirty},
      {"file_writeback", &M::set_file_writeback},
      {"anon_thp", &M::set_anon_thp},
      {"inactive_anon", &M::set_inactive_anon},
      {"active_anon", &M::set_active_anon},
      {"inactive_file", &M::set_inactive_file},
      {"active_file", &M::set_active_file},
      {"unevictable", &M::set_unevictable},
      {"slab_reclaimable", &M::set_slab_reclaimable},
      {"slab_unreclaimable", &M::set_slab_unreclaimable},
      {"pgfault", &M::set_pgfault},
      {"pgmajfault", &M::set_pgmajfault},
      {"workingset_refault", &M::set_workingset_refault},
      {"workingset_activate", &M::set_workingset_activate},
      {"workingset_nodereclaim", &M::set_workingset_nodereclaim},
      {"workingset_refault_anon", &M::set_workingset_refault_anon},
      {"workingset_refault_file", &M::set_workingset_refault_file},
      {"workingset_activate_anon", &M::set_workingset_activate_anon},
      {"workingset_activate_file", &M::set_workingset_activate_file},
      {"pgrefill", &M::set_pgrefill},
      {"pgscan", &M::set_pgscan},
      {"pgsteal", &M::set_pgsteal},
      {"pgactivate", &M::set_pgactivate},
      {"pgdeactivate", &M::set_pgdeactivate},
      {"pglazyfree", &M::set_pglazyfree},
      {"pglazyfreed", &M::set_pglazyfreed},
      {"thp_fault_alloc", &M::set_thp_fault_alloc},
      {"thp_collapse_alloc", &M::set_thp_collapse_alloc}};
  Apply(kSetters, key, value, *out.mutable_memory());
}

void SetMemoryEvent(string_view key, uint64_t value, v2::Metrics& out) {
  using E = v2::MemoryEvents;
  static const Setters<E> kSetters = {
      {"low", &E::set_low},           {"high", &E::set_high},
      {"max", &E::set_max},           {"oom", &E::set_oom},
      {"oom_kill", &E::set_oom_kill}, {"oom_group_kill", &E::set_oom_group_kill}};
  Apply(kSetters, key, value, *out.mutable_memory_events());
}

// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", then the same for "full".
void ReadPressure(const std::string& path, v2::PSIStats* (*where)(v2::Metrics&), v2::Metrics& out) {
  auto text = ReadFile(path);
  if (!text.ok()) return;
  for (string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.empty() || (words[0] != "some" && words[0] != "full")) continue;
    v2::PSIStats& stats = *where(out);
    v2::PSIData& data = words[0] == "some" ? *stats.mutable_some() : *stats.mutable_full();
    for (string_view word : words) {
      const std::pair<string_view, string_view> kv = absl::StrSplit(word, absl::MaxSplits('=', 1));
      double average = 0;
      uint64_t total = 0;
      if (kv.first == "total" && absl::SimpleAtoi(kv.second, &total)) data.set_total(total);
      if (!absl::SimpleAtod(kv.second, &average)) continue;
      if (kv.first == "avg10") data.set_avg10(average);
      if (kv.first == "avg60") data.set_avg60(average);
      if (kv.first == "avg300") data.set_avg300(average);
    }
  }
}

// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 ..."
void ReadIo(const std::string& path, v2::Metrics& out) {
  static const Setters<v2::IOEntry> kSetters = {{"rbytes", &v2::IOEntry::set_rbytes},
                                                {"wbytes", &v2::IOEntry::set_wbytes},
                                                {"rios", &v2::IOEntry::set_rios},
                                                {"wios", &v2::IOEntry::set_wios}};
  auto text = ReadFile(path);
  if (!text.ok()) return;
  for (string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    const std::pair<string_view, string_view> device =
        absl::StrSplit(words[0], absl::MaxSplits(':', 1));
    uint64_t major = 0;
    uint64_t minor = 0;
    if (!absl::SimpleAtoi(device.first, &major) || !absl::SimpleAtoi(device.second, &minor)) {
      continue;
    }
    v2::IOEntry& entry = *out.mutable_io()->add_usage();
    entry.set_major(major);
    entry.set_minor(minor);
    for (string_view word : words) {
      const std::pair<string_view, string_view> kv = absl::StrSplit(word, absl::MaxSplits('=', 1));
      uint64_t value = 0;
      if (absl::SimpleAtoi(kv.second, &value)) Apply(kSetters, kv.first, value, entry);
    }
  }
}

}  // namespace

uint64_t ReadNumber(const std::string& path, uint64_t otherwise) {
  auto text = ReadFile(path);
  if (!text.ok()) return otherwise;
  const string_view word = absl::StripAsciiWhitespace(*text);
  if (word == "max") return std::numeric_limits<uint64_t>::max();
  uint64_t value = 0;
  return absl::SimpleAtoi(word, &value) ? value : otherwise;
}

void ForEachKey(const std::string& path,
                void (*set)(string_view key, uint64_t value, v2::Metrics& out), v2::Metrics& out) {
  auto text = ReadFile(path);
  if (!text.ok()) return;
  for (string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::pair<string_view, string_view> kv = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    uint64_t value = 0;
    if (absl::SimpleAtoi(kv.second, &value)) set(kv.first, value, out);
  }
}

void ReadMetricsV2(const Hierarchy& hierarchy, const std::string& directory, v2::Metrics& out) {
  const auto file = [&directory](const char* name) { return absl::StrCat(directory, "/", name); };
  if (hierarchy.Has("cpu")) {
    ForEachKey(file("cpu.stat"), &SetCpu, out);
    ReadPressure(
        file("cpu.pressure"), [](v2::Metrics& m) { return m.mutable_cpu()->mutable_psi(); }, out);
  }
  if (hierarchy.Has("memory")) {
    ForEachKey(file("memory.stat"), &SetMemory, out);
    ForEachKey(file("memory.events"), &SetMemoryEvent, out);
    v2::MemoryStat& memory = *out.mutable_memory();
    memory.set_usage(ReadNumber(file("memory.current")));
    memory.set_usage_limit(ReadNumber(file("memory.max")));
    memory.set_max_usage(ReadNumber(file("memory.peak")));
    memory.set_swap_usage(ReadNumber(file("memory.swap.current")));
    memory.set_swap_limit(ReadNumber(file("memory.swap.max")));
    memory.set_swap_max_usage(ReadNumber(file("memory.swap.peak")));
    ReadPressure(
        file("memory.pressure"), [](v2::Metrics& m) { return m.mutable_memory()->mutable_psi(); },
        out);
  }
  if (hierarchy.Has("pids")) {
    out.mutable_pids()->set_current(ReadNumber(file("pids.current")));
    out.mutable_pids()->set_limit(ReadNumber(file("pids.max")));
  }
  if (hierarchy.Has("io")) {
    ReadIo(file("io.stat"), out);
    ReadPressure(
        file("io.pressure"), [](v2::Metrics& m) { return m.mutable_io()->mutable_psi(); }, out);
  }
}

}  // namespace magnetar::daemon
