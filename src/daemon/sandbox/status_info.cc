#include "src/daemon/sandbox/status_info.h"

#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "cri/runtime.pb.h"

namespace magnetar::daemon {
namespace {

using nlohmann::json;

json Resources(const runtime::v1::LinuxContainerResources& r) {
  return {{"cpu_period", r.cpu_period()},   {"cpu_quota", r.cpu_quota()},
          {"cpu_shares", r.cpu_shares()},   {"memory_limit_in_bytes", r.memory_limit_in_bytes()},
          {"cpuset_cpus", r.cpuset_cpus()}, {"cpuset_mems", r.cpuset_mems()}};
}

json Strings(const google::protobuf::RepeatedPtrField<std::string>& list) {
  json out = json::array();
  for (const std::string& s : list) out.push_back(s);
  return out;
}

json StringMap(const google::protobuf::Map<std::string, std::string>& map) {
  json out = json::object();
  for (const auto& [key, value] : map) out[key] = value;
  return out;
}

// The names of the JSON tags of Go's CRI structs.
json PodConfig(const runtime::v1::PodSandboxConfig& c) {
  json ports = json::array();
  for (const auto& p : c.port_mappings()) {
    ports.push_back({{"protocol", static_cast<int>(p.protocol())},
                     {"container_port", p.container_port()},
                     {"host_port", p.host_port()},
                     {"host_ip", p.host_ip()}});
  }
  json out = {{"metadata",
               {{"name", c.metadata().name()},
                {"uid", c.metadata().uid()},
                {"namespace", c.metadata().namespace_()},
                {"attempt", c.metadata().attempt()}}},
              {"hostname", c.hostname()},
              {"log_directory", c.log_directory()},
              {"dns_config",
               {{"servers", Strings(c.dns_config().servers())},
                {"searches", Strings(c.dns_config().searches())},
                {"options", Strings(c.dns_config().options())}}},
              {"port_mappings", std::move(ports)},
              {"labels", StringMap(c.labels())},
              {"annotations", StringMap(c.annotations())}};
  json linux = {{"cgroup_parent", c.linux().cgroup_parent()},
                {"sysctls", StringMap(c.linux().sysctls())}};
  if (c.linux().has_overhead()) linux["overhead"] = Resources(c.linux().overhead());
  if (c.linux().has_resources()) linux["resources"] = Resources(c.linux().resources());
  out["linux"] = std::move(linux);
  return out;
}

// Labels may hold anything; the answer is UTF-8.
std::string Utf8(const json& info) {
  return info.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::string StatusInfoJson(const SandboxSnapshot& snapshot, const Record& record) {
  const bool ready = snapshot.state == SandboxState::kReady;
  json info = {{"pid", snapshot.pid},
               {"processStatus", ready ? "running" : "deleted"},
               {"netNamespaceClosed",
                !record.netns_path.empty() && ::access(record.netns_path.c_str(), F_OK) != 0},
               {"image", ""},
               {"snapshotKey", ""},
               {"snapshotter", ""},
               {"runtimeHandler", record.runtime_handler},
               {"runtimeType", "io.containerd.magnetar.v1"},
               {"runtimeOptions", nullptr}};
  runtime::v1::PodSandboxConfig pod;
  if (pod.ParseFromString(record.pod_config)) info["config"] = PodConfig(pod);
  return Utf8(info);
}

std::string VmInfoJson(const SandboxSnapshot& snapshot, const Record& record) {
  json processes = json::array();
  for (const RecordedProcess& p : record.processes) {
    processes.push_back({{"name", p.name}, {"pid", p.identity.pid}});
  }
  const json info = {
      {"state", std::string(SandboxStateName(snapshot.state))},
      {"vmm", record.vmm},
      {"fileShare", record.file_share},
      {"vcpus", record.vcpus},
      {"memoryBytes", record.memory_bytes},
      {"wantedVcpus", std::max(record.wanted_vcpus, record.vcpus)},
      {"wantedMemoryBytes",
       record.wanted_memory_bytes != 0 ? record.wanted_memory_bytes : record.memory_bytes},
      {"maxVcpus", record.max_vcpus},
      {"maxMemoryBytes", record.max_memory_bytes},
      {"uid", record.uid},
      {"exitReason", record.exit_reason},
      {"processes", std::move(processes)}};
  return Utf8(info);
}

}  // namespace magnetar::daemon
