#include "vmm/qemu/resize.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "vmm/qemu/command_line.h"
#include "vmm/qemu/qmp_wire.h"

namespace magnetar::vmm::qemu {
namespace {

using nlohmann::json;

constexpr char kBackend[] = "hotmem";
constexpr char kDevice[] = "hotmem-device";
constexpr char kDevicePath[] = "/machine/peripheral/hotmem-device";
constexpr uint64_t kBlock = 2 << 20;

Co<absl::StatusOr<json>> Run(std::shared_ptr<QmpClient> qmp, std::string command, json arguments) {
  auto execute = qmp->Execute(std::move(command), std::move(arguments), UniqueFd());
  absl::StatusOr<json> reply = co_await std::move(execute);
  co_return reply;
}

struct HotpluggableCpu {
  std::string type;
  json properties;
  bool present = false;
};

Co<absl::StatusOr<std::vector<HotpluggableCpu>>> QueryCpus(std::shared_ptr<QmpClient> qmp) {
  auto query = Run(qmp, "query-hotpluggable-cpus", json());
  absl::StatusOr<json> reply = co_await std::move(query);
  if (!reply.ok()) co_return reply.status();
  if (!reply->is_array()) co_return absl::InternalError("QMP query-hotpluggable-cpus: no list");
  std::vector<HotpluggableCpu> out;
  for (const json& entry : *reply) {
    const bool sound = entry.is_object() && entry.contains("props") && entry["props"].is_object();
    if (!sound) co_return absl::InternalError("QMP query-hotpluggable-cpus: an entry has no props");
    out.push_back({StringAt(entry, "type"), entry["props"], entry.contains("qom-path")});
  }
  co_return out;
}

uint32_t Present(const std::vector<HotpluggableCpu>& cpus) {
  uint32_t count = 0;
  for (const HotpluggableCpu& cpu : cpus) count += cpu.present ? 1 : 0;
  return count;
}

Co<absl::Status> AddCpus(std::shared_ptr<QmpClient> qmp, uint32_t vcpus) {
  auto query = QueryCpus(qmp);
  absl::StatusOr<std::vector<HotpluggableCpu>> cpus = co_await std::move(query);
  if (!cpus.ok()) co_return cpus.status();
  uint32_t present = Present(*cpus);
  if (vcpus > cpus->size()) {
    co_return absl::OutOfRangeError(
        absl::StrCat(vcpus, " processors: the VM can have ", cpus->size()));
  }
  // QEMU lists the last one first; the guest expects them in order.
  for (auto cpu = cpus->rbegin(); cpu != cpus->rend() && present < vcpus; ++cpu) {
    if (cpu->present) continue;
    json device = std::move(cpu->properties);
    device["driver"] = cpu->type;
    device["id"] = absl::StrCat("cpu", present);
    auto add = Run(qmp, "device_add", std::move(device));
    const absl::StatusOr<json> added = co_await std::move(add);
    if (!added.ok()) co_return added.status();
    ++present;
  }
  co_return absl::OkStatus();
}

Co<absl::Status> PlugMemoryDevice(std::shared_ptr<QmpClient> qmp, uint64_t place,
                                  uint64_t requested) {
  json backend = {{"qom-type", "memory-backend-memfd"},
                  {"id", kBackend},
                  {"size", place},
                  {"share", true},
                  {"reserve", false}};
  auto make = Run(qmp, "object-add", std::move(backend));
  const absl::StatusOr<json> made = co_await std::move(make);
  if (!made.ok()) co_return made.status();
  json device = {{"driver", "virtio-mem-pci"}, {"id", kDevice},
                 {"memdev", kBackend},         {"bus", kMemoryPort},
                 {"block-size", kBlock},       {"requested-size", requested}};
  auto plug = Run(qmp, "device_add", std::move(device));
  const absl::StatusOr<json> plugged = co_await std::move(plug);
  if (plugged.ok()) co_return absl::OkStatus();
  json id = {{"id", kBackend}};
  auto undo = Run(qmp, "object-del", std::move(id));
  const absl::StatusOr<json> undone = co_await std::move(undo);
  if (undone.ok()) co_return plugged.status();
  co_return absl::Status(plugged.status().code(),
                         absl::StrCat(plugged.status().message(),
                                      "; and undoing it failed: ", undone.status().message()));
}

struct Memory {
  uint64_t boot = 0;
  uint64_t place = 0;  // for memory that is added
  uint64_t added = 0;
  uint64_t requested = 0;
  bool device = false;
};

Co<absl::StatusOr<Memory>> QueryMemory(std::shared_ptr<QmpClient> qmp) {
  json property = {{"path", "/machine"}, {"property", "memory"}};
  auto query = Run(qmp, "qom-get", std::move(property));
  absl::StatusOr<json> machine = co_await std::move(query);
  if (!machine.ok()) co_return machine.status();
  Memory out;
  out.boot = NumberAt(*machine, "size");
  const uint64_t most = NumberAt(*machine, "max-size");
  out.place = most > out.boot ? most - out.boot : 0;
  auto list = Run(qmp, "query-memory-devices", json());
  absl::StatusOr<json> devices = co_await std::move(list);
  if (!devices.ok()) co_return devices.status();
  for (const json& device : *devices) {
    const auto data = device.is_object() ? device.find("data") : device.end();
    if (!device.is_object() || data == device.end() || StringAt(*data, "id") != kDevice) continue;
    out.device = true;
    out.added = NumberAt(*data, "size");
    out.requested = NumberAt(*data, "requested-size");
  }
  co_return out;
}

}  // namespace

Co<absl::StatusOr<Size>> QuerySize(std::shared_ptr<QmpClient> qmp) {
  auto query_cpus = QueryCpus(qmp);
  const absl::StatusOr<std::vector<HotpluggableCpu>> cpus = co_await std::move(query_cpus);
  if (!cpus.ok()) co_return cpus.status();
  auto query_memory = QueryMemory(qmp);
  const absl::StatusOr<Memory> memory = co_await std::move(query_memory);
  if (!memory.ok()) co_return memory.status();
  co_return Size{.vcpus = Present(*cpus),
                 .max_vcpus = static_cast<uint32_t>(cpus->size()),
                 .memory_bytes = memory->boot + memory->added,
                 .requested_memory_bytes = memory->boot + memory->requested,
                 .boot_memory_bytes = memory->boot,
                 .max_memory_bytes = memory->boot + memory->place};
}

Co<absl::Status> ResizeVm(std::shared_ptr<QmpClient> qmp, uint32_t vcpus, uint64_t memory_bytes) {
  auto query = QueryMemory(qmp);
  const absl::StatusOr<Memory> memory = co_await std::move(query);
  if (!memory.ok()) co_return memory.status();
  uint64_t requested = memory_bytes > memory->boot ? memory_bytes - memory->boot : 0;
  requested = (requested + kMemoryStep - 1) / kMemoryStep * kMemoryStep;
  if (requested > memory->place) {
    co_return absl::OutOfRangeError(absl::StrCat(memory_bytes, " bytes of memory: the VM can have ",
                                                 memory->boot + memory->place));
  }
  auto add = AddCpus(qmp, vcpus);
  const absl::Status added = co_await std::move(add);
  if (!added.ok()) co_return added;
  if (!memory->device) {
    if (requested == 0) co_return absl::OkStatus();
    auto plug = PlugMemoryDevice(qmp, memory->place, requested);
    const absl::Status plugged = co_await std::move(plug);
    co_return Annotate(plugged, "plug the memory device");
  }
  json property = {{"path", kDevicePath}, {"property", "requested-size"}, {"value", requested}};
  auto set = Run(qmp, "qom-set", std::move(property));
  const absl::StatusOr<json> done = co_await std::move(set);
  co_return done.status();
}

}  // namespace magnetar::vmm::qemu
