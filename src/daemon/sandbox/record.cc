#include "src/daemon/sandbox/record.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(RecordedNic, slot, interface, name, mac, mtu,
                                                plugged)

namespace {

using nlohmann::json;

constexpr std::array<std::pair<Step, const char*>, 6> kStepNames = {{
    {Step::kDirectory, "directory"},
    {Step::kCgroup, "cgroup"},
    {Step::kNetwork, "network"},
    {Step::kShared, "shared"},
    {Step::kSupervisor, "supervisor"},
    {Step::kGuest, "guest"},
}};

template <typename T>
void Get(const json& object, const char* key, T* out) {
  const auto it = object.find(key);
  if (it != object.end()) *out = it->get<T>();
}

RecordedProcess ProcessFromJson(const json& j) {
  RecordedProcess p;
  Get(j, "name", &p.name);
  Get(j, "pid", &p.identity.pid);
  Get(j, "start_time_ticks", &p.identity.start_time_ticks);
  Get(j, "boot_id", &p.identity.boot_id);
  Get(j, "vmm", &p.vmm);
  return p;
}

ContainerStep ContainerStepFromJson(const json& j) {
  ContainerStep s;
  Get(j, "kind", &s.kind);
  Get(j, "container_id", &s.container_id);
  Get(j, "path", &s.path);
  Get(j, "source", &s.source);
  Get(j, "serial", &s.serial);
  return s;
}

ContainerLimits ContainerLimitsFromJson(const json& j) {
  ContainerLimits limits;
  Get(j, "container_id", &limits.container_id);
  Get(j, "memory_bytes", &limits.memory_bytes);
  Get(j, "millicpus", &limits.millicpus);
  return limits;
}

// A serialized message, in base64.
void GetMessage(const json& object, const char* key, std::string* out) {
  std::string encoded;
  Get(object, key, &encoded);
  if (!absl::Base64Unescape(encoded, out)) {
    throw std::invalid_argument(absl::StrCat(key, " is not base64"));
  }
}

Record FromJson(const json& j) {
  Record r;
  Get(j, "id", &r.id);
  Get(j, "namespace", &r.containerd_namespace);
  Get(j, "state", &r.state);
  GetMessage(j, "pod_config", &r.pod_config);
  Get(j, "netns_path", &r.netns_path);
  Get(j, "runtime_handler", &r.runtime_handler);
  Get(j, "cgroup_parent", &r.cgroup_parent);
  Get(j, "vmm", &r.vmm);
  Get(j, "file_share", &r.file_share);
  Get(j, "agent_protocol", &r.agent_protocol);
  Get(j, "agent_features", &r.agent_features);
  Get(j, "uid", &r.uid);
  Get(j, "vcpus", &r.vcpus);
  Get(j, "memory_bytes", &r.memory_bytes);
  Get(j, "wanted_vcpus", &r.wanted_vcpus);
  Get(j, "wanted_memory_bytes", &r.wanted_memory_bytes);
  Get(j, "resizing", &r.resizing);
  Get(j, "granted_memory_bytes", &r.granted_memory_bytes);
  Get(j, "max_vcpus", &r.max_vcpus);
  Get(j, "boot_memory_bytes", &r.boot_memory_bytes);
  Get(j, "max_memory_bytes", &r.max_memory_bytes);
  Get(j, "pod_updated", &r.pod_updated);
  GetMessage(j, "pod_resources", &r.pod_resources);
  GetMessage(j, "pod_overhead", &r.pod_overhead);
  Get(j, "vmm_pid", &r.vmm_pid);
  Get(j, "created_at_ns", &r.created_at_ns);
  Get(j, "started_at_ns", &r.started_at_ns);
  Get(j, "exited_at_ns", &r.exited_at_ns);
  Get(j, "exit_status", &r.exit_status);
  Get(j, "exit_reason", &r.exit_reason);
  if (j.contains("processes")) {
    for (const json& p : j.at("processes")) r.processes.push_back(ProcessFromJson(p));
  }
  if (j.contains("steps")) {
    for (const json& s : j.at("steps")) {
      const auto name = s.get<std::string>();
      for (const auto& [step, step_name] : kStepNames) {
        if (step_name == name) r.steps.push_back(step);
      }
    }
  }
  if (j.contains("container_steps")) {
    for (const json& s : j.at("container_steps")) {
      r.container_steps.push_back(ContainerStepFromJson(s));
    }
  }
  if (j.contains("container_limits")) {
    for (const json& limits : j.at("container_limits")) {
      r.container_limits.push_back(ContainerLimitsFromJson(limits));
    }
  }
  Get(j, "nics", &r.nics);
  return r;
}

// Strings that come from outside may hold anything; JSON holds UTF-8.
std::string Dump(const json& j) {
  return j.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace

bool HasFeature(const Record& record, std::string_view feature) {
  return std::find(record.agent_features.begin(), record.agent_features.end(), feature) !=
         record.agent_features.end();
}

const char* StepName(Step step) {
  for (const auto& [s, name] : kStepNames) {
    if (s == step) return name;
  }
  return "";
}

std::string RecordToJson(const Record& r) {
  json processes = json::array();
  for (const RecordedProcess& p : r.processes) {
    processes.push_back({{"name", p.name},
                         {"pid", p.identity.pid},
                         {"start_time_ticks", p.identity.start_time_ticks},
                         {"boot_id", p.identity.boot_id},
                         {"vmm", p.vmm}});
  }
  json steps = json::array();
  for (const Step step : r.steps) steps.push_back(StepName(step));
  json container_steps = json::array();
  for (const ContainerStep& s : r.container_steps) {
    container_steps.push_back({{"kind", s.kind},
                               {"container_id", s.container_id},
                               {"path", s.path},
                               {"source", s.source},
                               {"serial", s.serial}});
  }
  json container_limits = json::array();
  for (const ContainerLimits& limits : r.container_limits) {
    container_limits.push_back({{"container_id", limits.container_id},
                                {"memory_bytes", limits.memory_bytes},
                                {"millicpus", limits.millicpus}});
  }
  const json j = {{"schema", kRecordSchema},
                  {"id", r.id},
                  {"namespace", r.containerd_namespace},
                  {"state", r.state},
                  {"pod_config", absl::Base64Escape(r.pod_config)},
                  {"netns_path", r.netns_path},
                  {"runtime_handler", r.runtime_handler},
                  {"cgroup_parent", r.cgroup_parent},
                  {"vmm", r.vmm},
                  {"file_share", r.file_share},
                  {"agent_protocol", r.agent_protocol},
                  {"agent_features", r.agent_features},
                  {"uid", r.uid},
                  {"vcpus", r.vcpus},
                  {"memory_bytes", r.memory_bytes},
                  {"wanted_vcpus", r.wanted_vcpus},
                  {"wanted_memory_bytes", r.wanted_memory_bytes},
                  {"resizing", r.resizing},
                  {"granted_memory_bytes", r.granted_memory_bytes},
                  {"max_vcpus", r.max_vcpus},
                  {"boot_memory_bytes", r.boot_memory_bytes},
                  {"max_memory_bytes", r.max_memory_bytes},
                  {"pod_updated", r.pod_updated},
                  {"pod_resources", absl::Base64Escape(r.pod_resources)},
                  {"pod_overhead", absl::Base64Escape(r.pod_overhead)},
                  {"container_limits", std::move(container_limits)},
                  {"vmm_pid", r.vmm_pid},
                  {"created_at_ns", r.created_at_ns},
                  {"started_at_ns", r.started_at_ns},
                  {"exited_at_ns", r.exited_at_ns},
                  {"exit_status", r.exit_status},
                  {"exit_reason", r.exit_reason},
                  {"processes", std::move(processes)},
                  {"steps", std::move(steps)},
                  {"container_steps", std::move(container_steps)},
                  {"nics", r.nics}};
  return Dump(j);
}

absl::StatusOr<Record> RecordFromJson(std::string_view text) {
  const json j = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!j.is_object()) return absl::DataLossError("sandbox record is no JSON object");
  try {
    int schema = 0;
    Get(j, "schema", &schema);
    if (schema > kRecordSchema) {
      return absl::UnimplementedError(absl::StrCat("sandbox record has schema ", schema,
                                                   ", this program knows ", kRecordSchema));
    }
    Record record = FromJson(j);
    if (schema < 1 || record.id.empty()) return absl::DataLossError("sandbox record has no id");
    return record;
  } catch (const std::exception& e) {
    return absl::DataLossError(absl::StrCat("sandbox record: ", e.what()));
  }
}

absl::StatusOr<Record> ReadRecord(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kRecordFile);
  absl::StatusOr<std::string> text = ReadFile(path, kMaxRecordBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<Record> record = RecordFromJson(*text);
  if (!record.ok()) return Annotate(record.status(), path);
  return record;
}

absl::Status WriteRecord(const std::string& directory, const Record& record) {
  const std::string text = RecordToJson(record);
  // What cannot be read again is not written over what can.
  if (text.size() > kMaxRecordBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the record of ", text.size(), " bytes is longer than ", kMaxRecordBytes));
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", kRecordFile), text);
}

Record RecordFile::Get() const {
  const std::lock_guard lock(mutex_);
  return record_;
}

absl::Status RecordFile::Update(const std::function<void(Record&)>& change) {
  const std::lock_guard lock(mutex_);
  change(record_);
  return WriteRecord(directory_, record_);
}

absl::Status RecordFile::AddStep(Step step) {
  return Update([step](Record& record) {
    if (std::find(record.steps.begin(), record.steps.end(), step) == record.steps.end()) {
      record.steps.push_back(step);
    }
  });
}

absl::Status RecordFile::RemoveStep(Step step) {
  return Update([step](Record& record) {
    record.steps.erase(std::remove(record.steps.begin(), record.steps.end(), step),
                       record.steps.end());
  });
}

}  // namespace magnetar::daemon
