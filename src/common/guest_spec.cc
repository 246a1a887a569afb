#include "magnetar/guest_spec.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar {
namespace {

// Resources that speak of the host's hardware, or of cgroup v1: the guest has v2 only, and its
// crun (1.8.1) fails on most of them.
constexpr struct {
  const char* group;
  const char* key;  // nullptr: the whole group
} kDroppedResources[] = {
    {"blockIO", nullptr},
    {"network", nullptr},
    {"rdma", nullptr},
    {"memory", "kernel"},
    {"memory", "kernelTCP"},
    {"memory", "swappiness"},
    {"memory", "disableOOMKiller"},
    {"memory", "useHierarchy"},
    {"memory", "checkBeforeUpdate"},
    {"cpu", "cpus"},
    {"cpu", "mems"},
    {"cpu", "realtimePeriod"},
    {"cpu", "realtimeRuntime"},
};

// Files of cgroup v2 that mean the same in a guest. Others name the host's CPUs, nodes and
// devices (cpuset.*, io.*, rdma.*, hugetlb.*), or belong to the agent (cgroup.*).
constexpr const char* kUnifiedPrefixes[] = {"cpu.", "memory.", "pids."};

constexpr const char* kProcessLabels[] = {"apparmorProfile", "selinuxLabel"};

// Kubelets send a limit of 0 for each page size of the host; the guest may lack that size,
// and has no such pages anyway.
absl::Status DropZeroHugepageLimits(Json& resources) {
  absl::StatusOr<Json*> limits = FindArray(resources, "linux.resources", "hugepageLimits");
  if (!limits.ok()) return limits.status();
  if (*limits == nullptr) return absl::OkStatus();
  Json kept = Json::array();
  for (Json& limit : **limits) {
    if (!limit.is_object()) {
      return absl::InvalidArgumentError(
          "spec: linux.resources.hugepageLimits is no array of objects");
    }
    if (limit.contains("limit") && limit["limit"] != 0) kept.push_back(std::move(limit));
  }
  if (kept.empty()) {
    resources.erase("hugepageLimits");
  } else {
    resources["hugepageLimits"] = std::move(kept);
  }
  return absl::OkStatus();
}

absl::Status ReduceUnified(Json& resources, std::vector<std::string>& dropped) {
  absl::StatusOr<Json*> unified = FindObject(resources, "linux.resources", "unified");
  if (!unified.ok()) return unified.status();
  if (*unified == nullptr) return absl::OkStatus();
  Json kept = Json::object();
  for (auto& [file, value] : (*unified)->items()) {
    const bool known =
        std::any_of(std::begin(kUnifiedPrefixes), std::end(kUnifiedPrefixes),
                    [&name = file](const char* prefix) { return absl::StartsWith(name, prefix); });
    if (known) {
      kept[file] = std::move(value);
    } else {
      dropped.push_back(absl::StrCat("linux.resources.unified.", absl::CHexEscape(file)));
    }
  }
  if (kept.empty()) {
    resources.erase("unified");
  } else {
    **unified = std::move(kept);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReduceResources(Json& resources, std::vector<std::string>& dropped) {
  for (const auto& rule : kDroppedResources) {
    Json* parent = &resources;
    const char* key = rule.group;
    std::string where = "linux.resources";
    if (rule.key != nullptr) {
      absl::StatusOr<Json*> group = FindObject(resources, where, rule.group);
      if (!group.ok()) return group.status();
      if (*group == nullptr) continue;
      absl::StrAppend(&where, ".", rule.group);
      parent = *group;
      key = rule.key;
    }
    if (HasContent(*parent, key)) dropped.push_back(absl::StrCat(where, ".", key));
    parent->erase(key);
  }
  MAGNETAR_RETURN_IF_ERROR(ReduceUnified(resources, dropped));
  return DropZeroHugepageLimits(resources);
}

void ReduceProcess(Json& process, std::vector<std::string>& dropped) {
  for (const char* label : kProcessLabels) {
    if (HasContent(process, label)) dropped.push_back(absl::StrCat("process.", label));
    process.erase(label);
  }
}

absl::StatusOr<std::string> ReducedResources(const std::string& json) {
  absl::StatusOr<Json> resources = ParseSpecJson(json);
  if (!resources.ok()) return resources.status();
  std::vector<std::string> dropped;
  MAGNETAR_RETURN_IF_ERROR(ReduceResources(*resources, dropped));
  // With the host's numbers; what the container may use does not change while it runs.
  resources->erase("devices");
  return SpecText(*resources);
}

absl::StatusOr<std::string> ReducedProcess(const std::string& json) {
  absl::StatusOr<Json> process = ParseSpecJson(json);
  if (!process.ok()) return process.status();
  std::vector<std::string> dropped;
  ReduceProcess(*process, dropped);
  return SpecText(*process);
}

std::string SpecText(const Json& spec) {
  return spec.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace magnetar
