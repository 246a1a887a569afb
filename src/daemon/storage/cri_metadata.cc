#include "src/daemon/storage/cri_metadata.h"

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <utility>

#include "cri/runtime.pb.h"
#include "magnetar/ids.h"

namespace magnetar::daemon {
namespace {

using Json = nlohmann::json;

constexpr char kExtension[] = "io.cri-containerd.container.metadata";
constexpr std::initializer_list<const char*> kNamespaceOptions = {
    "Metadata", "Config", "linux", "security_context", "namespace_options"};
constexpr std::initializer_list<const char*> kDevices = {"Metadata", "Config", "devices"};
constexpr std::initializer_list<const char*> kHugePages = {"Metadata", "Config", "linux",
                                                           "resources", "hugepage_limits"};

// What is at a path of the metadata; null if it is absent.
Json MetadataAt(const containerd::services::containers::v1::Container& container,
                std::initializer_list<const char*> path) {
  const auto extension = container.extensions().find(kExtension);
  if (extension == container.extensions().end()) return nullptr;
  Json here = Json::parse(extension->second.value(), nullptr, /*allow_exceptions=*/false);
  for (const char* name : path) {
    const auto member = here.find(name);
    if (member == here.end()) return nullptr;
    Json below = std::move(*member);
    here = std::move(below);
  }
  return here;
}

std::string StringAt(const Json& object, const char* name) {
  const auto member = object.find(name);
  return member != object.end() && member->is_string() ? member->get<std::string>() : "";
}

}  // namespace

absl::StatusOr<std::string> TargetContainer(
    const containerd::services::containers::v1::Container& container) {
  const Json options = MetadataAt(container, kNamespaceOptions);
  const auto pid = options.find("pid");
  if (pid == options.end() || *pid != Json(static_cast<int>(runtime::v1::TARGET))) return "";
  std::string id = StringAt(options, "target_id");
  if (id.empty()) return "";
  const absl::Status valid = ValidateId(id, "namespace_options.target_id");
  if (!valid.ok()) return valid;
  return id;
}

std::vector<RequestedDevice> RequestedDevices(
    const containerd::services::containers::v1::Container& container) {
  std::vector<RequestedDevice> devices;
  const Json entries = MetadataAt(container, kDevices);
  if (!entries.is_array()) return devices;
  for (const Json& entry : entries) {
    devices.push_back({StringAt(entry, "host_path"), StringAt(entry, "container_path"),
                       StringAt(entry, "permissions")});
  }
  return devices;
}

std::vector<HugePageLimit> HugePageLimits(
    const containerd::services::containers::v1::Container& container) {
  std::vector<HugePageLimit> limits;
  const Json entries = MetadataAt(container, kHugePages);
  if (!entries.is_array()) return limits;
  for (const Json& entry : entries) {
    const auto bytes = entry.find("limit");
    if (bytes == entry.end() || !bytes->is_number_unsigned() || *bytes == 0) continue;
    limits.push_back({StringAt(entry, "page_size"), bytes->get<uint64_t>()});
  }
  return limits;
}

}  // namespace magnetar::daemon
