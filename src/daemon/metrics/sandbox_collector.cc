#include "src/daemon/metrics/sandbox_collector.h"

#include <algorithm>
#include <cstdint>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/files.h"
#include "src/daemon/metrics/families.h"

namespace magnetar::daemon {
namespace {

using prometheus::MetricType;

constexpr SandboxState kStates[] = {SandboxState::kCreated, SandboxState::kStarting,
                                    SandboxState::kReady, SandboxState::kStopping,
                                    SandboxState::kNotReady};

constexpr char kVmm[] = "vmm";
constexpr char kServer[] = "file_server";

// Resident memory by what backs it. The guest's is shmem, of VMM and file server both.
struct Usage {
  uint64_t processes = 0;
  uint64_t anon = 0;
  uint64_t file = 0;
  uint64_t shmem = 0;
};

// "RssAnon:	    1234 kB"
void AddMemory(absl::string_view status, Usage& usage) {
  for (const absl::string_view line : absl::StrSplit(status, '\n')) {
    uint64_t* const sum = absl::StartsWith(line, "RssAnon:")    ? &usage.anon
                          : absl::StartsWith(line, "RssFile:")  ? &usage.file
                          : absl::StartsWith(line, "RssShmem:") ? &usage.shmem
                                                                : nullptr;
    if (sum == nullptr) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    uint64_t kib = 0;
    if (words.size() > 1 && absl::SimpleAtoi(words[1], &kib)) *sum += kib << 10;
  }
}

bool Measure(const std::string& directory, Usage& usage) {
  const absl::StatusOr<std::string> status = ReadFile(absl::StrCat(directory, "/status"));
  if (!status.ok()) return false;
  ++usage.processes;
  AddMemory(*status, usage);
  return true;
}

// One that has ended, and maybe another has its pid by now, counts nothing.
bool SameProcess(const std::string& directory, const ProcessIdentity& identity) {
  const absl::StatusOr<std::string> stat = ReadFile(absl::StrCat(directory, "/stat"));
  if (!stat.ok()) return false;
  const absl::StatusOr<uint64_t> started = ParseStartTime(*stat);
  return started.ok() && *started == identity.start_time_ticks;
}

const char* KindOf(const RecordedProcess& process) {
  if (process.vmm) return kVmm;
  return process.name == kSupervisor ? kSupervisor : kServer;
}

void MeasureProcess(const std::string& proc, const RecordedProcess& process,
                    std::map<std::string, Usage>& usages) {
  const pid_t pid = process.identity.pid;
  const std::string directory = absl::StrCat(proc, "/", pid);
  if (!SameProcess(directory, process.identity)) return;
  Usage& usage = usages[KindOf(process)];
  if (!Measure(directory, usage) || KindOf(process) != kServer) return;
  // A file server works in a child of its own.
  const absl::StatusOr<std::string> children =
      ReadFile(absl::StrCat(directory, "/task/", pid, "/children"));
  if (!children.ok()) return;
  for (const absl::string_view child : absl::StrSplit(*children, ' ', absl::SkipWhitespace())) {
    (void)Measure(absl::StrCat(proc, "/", child), usage);
  }
}

}  // namespace

std::vector<prometheus::MetricFamily> SandboxCollector::Collect() const {
  std::map<SandboxState, uint64_t> states;
  uint64_t memory = 0;
  uint64_t vcpus = 0;
  uint64_t agent = 0;
  std::map<std::string, Usage> usages = {{kVmm, {}}, {kSupervisor, {}}, {kServer, {}}};
  for (const std::shared_ptr<Sandbox>& sandbox : manager_->All()) {
    const SandboxState state = sandbox->snapshot()->state;
    ++states[state];
    const Record record = sandbox->record();
    if (state == SandboxState::kReady) {
      memory += record.memory_bytes;
      vcpus += record.vcpus;
      agent = std::max(agent, sandbox->agent_peak_rss());
    }
    for (const RecordedProcess& process : record.processes) {
      MeasureProcess(proc_, process, usages);
    }
  }
  FamilyBuilder sandboxes("magnetar_sandboxes", "Sandboxes by state", MetricType::Gauge);
  for (const SandboxState state : kStates) {
    sandboxes.Add(static_cast<double>(states[state]),
                  {{"state", std::string(SandboxStateName(state))}});
  }
  FamilyBuilder processes("magnetar_vm_processes", "Processes of VMs on the host",
                          MetricType::Gauge);
  FamilyBuilder resident("magnetar_vm_process_resident_memory_bytes",
                         "Resident memory of the VMs' processes by what backs it; the guests' own "
                         "is shmem, of VMM and file server both",
                         MetricType::Gauge);
  for (const auto& [kind, usage] : usages) {
    processes.Add(static_cast<double>(usage.processes), {{"process", kind}});
    const std::pair<const char*, uint64_t> parts[] = {
        {"anon", usage.anon}, {"file", usage.file}, {"shmem", usage.shmem}};
    for (const auto& [backing, bytes] : parts) {
      resident.Add(static_cast<double>(bytes), {{"process", kind}, {"backing", backing}});
    }
  }
  FamilyBuilder given_memory("magnetar_guest_memory_bytes",
                             "Memory that the guests of ready sandboxes were given",
                             MetricType::Gauge);
  FamilyBuilder given_vcpus("magnetar_guest_vcpus",
                            "Virtual CPUs that the guests of ready sandboxes were given",
                            MetricType::Gauge);
  FamilyBuilder agents("magnetar_agent_peak_resident_memory_bytes",
                       "The most that the agent in any ready sandbox has had resident, as the "
                       "guests tell it with their heartbeats; 0: none has yet",
                       MetricType::Gauge);
  agents.Add(static_cast<double>(agent));
  given_memory.Add(static_cast<double>(memory));
  given_vcpus.Add(vcpus);
  std::vector<prometheus::MetricFamily> all;
  for (FamilyBuilder* family :
       {&sandboxes, &processes, &resident, &given_memory, &given_vcpus, &agents}) {
    all.push_back(family->Build());
  }
  return all;
}

}  // namespace magnetar::daemon
