#include "src/ctl/render.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/time.h"

namespace magnetar::ctl {
namespace {

using nlohmann::json;

std::string Time(int64_t nanoseconds) {
  if (nanoseconds == 0) return "";
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixNanos(nanoseconds),
                          absl::UTCTimeZone());
}

std::string Pids(const SandboxView& sandbox) {
  std::vector<std::string> parts;
  for (const ProcessView& process : sandbox.processes) {
    if (process.alive) parts.push_back(absl::StrCat(process.name, ":", process.pid));
  }
  return parts.empty() ? "-" : absl::StrJoin(parts, ",");
}

// How many bytes the UTF-8 character at the beginning of `text` has; 0 if there is none
// (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF).
size_t CharacterSize(absl::string_view text) {
  const auto byte = [&text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool valid = !(first == 0xe0 && second < 0xa0) && !(first == 0xed && second > 0x9f) &&
                     !(first == 0xf0 && second < 0x90) && !(first == 0xf4 && second > 0x8f);
  return valid ? size : 0;
}

// One character: C0, DEL, or C1, which terminals take for escape sequences too.
bool IsControl(absl::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7f;
  return first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0;
}

std::string Table(std::vector<std::vector<std::string>> rows) {
  for (auto& row : rows) {
    for (std::string& cell : row) cell = PrintableLine(cell);
  }
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 3, ' ');
    }
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

json ProcessJson(const ProcessView& process) {
  return {{"name", process.name},
          {"pid", process.pid},
          {"vmm", process.vmm},
          {"alive", process.alive},
          {"pss_bytes", process.memory.pss},
          {"rss_bytes", process.memory.rss}};
}

json Processes(const SandboxView& sandbox) {
  json out = json::array();
  for (const ProcessView& process : sandbox.processes) out.push_back(ProcessJson(process));
  return out;
}

json Summary(const SandboxView& sandbox) {
  return {{"id", sandbox.record.id},
          {"pod", sandbox.pod.metadata().name()},
          {"pod_namespace", sandbox.pod.metadata().namespace_()},
          {"vmm", sandbox.record.vmm},
          {"state", sandbox.state},
          {"pid", sandbox.record.vmm_pid},
          {"processes", Processes(sandbox)},
          {"pss_bytes", sandbox.pss()},
          {"created_at", Time(sandbox.record.created_at_ns)}};
}

template <typename Map>
json MapJson(const Map& map) {
  json out = json::object();
  for (const auto& [key, value] : map) out[key] = value;
  return out;
}

void AppendField(std::vector<std::vector<std::string>>& rows, const std::string& key,
                 const std::string& value) {
  if (!value.empty()) rows.push_back({key, value});
}

}  // namespace

std::string ListText(const std::vector<SandboxView>& sandboxes) {
  std::vector<std::vector<std::string>> rows = {
      {"SANDBOX", "NAMESPACE", "POD", "VMM", "STATE", "MEMORY", "PIDS"}};
  for (const SandboxView& sandbox : sandboxes) {
    rows.push_back({sandbox.record.id.substr(0, 13), sandbox.pod.metadata().namespace_(),
                    sandbox.pod.metadata().name(), sandbox.record.vmm, sandbox.state,
                    FormatBytes(sandbox.pss()), Pids(sandbox)});
  }
  return Table(std::move(rows));
}

json ListJson(const std::vector<SandboxView>& sandboxes) {
  json out = json::array();
  for (const SandboxView& sandbox : sandboxes) out.push_back(Summary(sandbox));
  return out;
}

json InspectJson(const SandboxView& sandbox) {
  const daemon::Record& record = sandbox.record;
  json out = Summary(sandbox);
  out["directory"] = sandbox.directory;
  out["containerd_namespace"] = record.containerd_namespace;
  out["recorded_state"] = record.state;
  out["runtime_handler"] = record.runtime_handler;
  out["netns"] = record.netns_path;
  out["cgroup_parent"] = record.cgroup_parent;
  out["uid"] = record.uid;
  out["vcpus"] = record.vcpus;
  out["memory_bytes"] = record.memory_bytes;
  out["wanted_vcpus"] = std::max(record.wanted_vcpus, record.vcpus);
  out["wanted_memory_bytes"] =
      record.wanted_memory_bytes != 0 ? record.wanted_memory_bytes : record.memory_bytes;
  out["started_at"] = Time(record.started_at_ns);
  out["pod_uid"] = sandbox.pod.metadata().uid();
  out["pod_attempt"] = sandbox.pod.metadata().attempt();
  out["hostname"] = sandbox.pod.hostname();
  out["labels"] = MapJson(sandbox.pod.labels());
  out["annotations"] = MapJson(sandbox.pod.annotations());
  json steps = json::array();
  for (const daemon::Step step : record.steps) {
    steps.push_back(std::string(daemon::StepName(step)));
  }
  out["steps"] = std::move(steps);
  json nics = json::array();
  for (const daemon::RecordedNic& nic : record.nics) {
    nics.push_back({{"slot", nic.slot},
                    {"interface", nic.name},
                    {"mac", nic.mac},
                    {"mtu", nic.mtu},
                    {"plugged", nic.plugged}});
  }
  out["nics"] = std::move(nics);
  json containers = json::array();
  for (const daemon::ContainerStep& step : record.container_steps) {
    containers.push_back({{"kind", step.kind},
                          {"container", step.container_id},
                          {"path", step.path},
                          {"source", step.source},
                          {"serial", step.serial}});
  }
  out["container_steps"] = std::move(containers);
  if (sandbox.exited) {
    out["exit"] = {{"status", sandbox.exit_status},
                   {"at", Time(sandbox.exited_at_ns)},
                   {"reason", sandbox.exit_reason}};
  }
  return out;
}

std::string InspectText(const SandboxView& sandbox) {
  const daemon::Record& record = sandbox.record;
  std::vector<std::vector<std::string>> rows;
  AppendField(rows, "sandbox", record.id);
  AppendField(
      rows, "pod",
      absl::StrCat(sandbox.pod.metadata().namespace_(), "/", sandbox.pod.metadata().name()));
  AppendField(rows, "pod uid", sandbox.pod.metadata().uid());
  AppendField(rows, "state", sandbox.state);
  AppendField(rows, "vmm", record.vmm);
  AppendField(rows, "vcpus", absl::StrCat(record.vcpus));
  AppendField(rows, "memory", FormatBytes(record.memory_bytes));
  if (record.wanted_memory_bytes != 0 && record.wanted_memory_bytes != record.memory_bytes) {
    AppendField(rows, "wanted memory", FormatBytes(record.wanted_memory_bytes));
  }
  AppendField(rows, "created", Time(record.created_at_ns));
  AppendField(rows, "started", Time(record.started_at_ns));
  if (sandbox.exited) {
    AppendField(rows, "exited",
                absl::StrCat(Time(sandbox.exited_at_ns), " status ", sandbox.exit_status, " ",
                             sandbox.exit_reason));
  }
  AppendField(rows, "runtime", record.runtime_handler);
  AppendField(rows, "netns", record.netns_path);
  AppendField(rows, "cgroup", record.cgroup_parent);
  AppendField(rows, "uid", absl::StrCat(record.uid));
  AppendField(rows, "directory", sandbox.directory);
  for (const ProcessView& process : sandbox.processes) {
    AppendField(rows, "process",
                absl::StrCat(process.name, " ", process.pid, " ",
                             process.alive ? FormatBytes(process.memory.pss) : "gone"));
  }
  for (const daemon::RecordedNic& nic : record.nics) {
    AppendField(rows, absl::StrCat("nic", nic.slot),
                absl::StrCat(nic.name, " ", nic.mac, nic.plugged ? "" : " not plugged in"));
  }
  for (const daemon::ContainerStep& step : record.container_steps) {
    AppendField(rows, step.kind,
                absl::StrCat(step.container_id, " ", step.path, step.source,
                             step.serial.empty() ? "" : " serial ", step.serial));
  }
  return Table(std::move(rows));
}

std::string LogText(const LogLine& line) {
  std::string text = PrintableLine(line.text);
  if (line.time.empty()) return absl::StrCat(text, "\n");
  return absl::StrCat(PrintableLine(line.time), " ", PrintableLine(line.level), " ", text, "\n");
}

json LogJson(const LogLine& line) {
  return {{"time", line.time}, {"level", line.level}, {"text", line.text}};
}

std::string Dump(const json& json) {
  return json.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string Printable(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t size = CharacterSize(text);
    const char first = text[0];
    if (first == '\n' || first == '\t') {
      out.push_back(first);
    } else if (size == 0 || IsControl(text.substr(0, size))) {
      // A guest's lines end with carriage returns too.
      if (first != '\r') out.push_back('?');
    } else {
      absl::StrAppend(&out, text.substr(0, size));
    }
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return out;
}

std::string PrintableLine(absl::string_view text) {
  return absl::StrReplaceAll(Printable(text), {{"\n", "?"}, {"\t", "?"}});
}

}  // namespace magnetar::ctl
