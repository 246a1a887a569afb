#include "src/daemon/storage/cri_metadata.h"

#include <nlohmann/json.hpp>

#include "cri/runtime.pb.h"
#include "magnetar/ids.h"

namespace magnetar::daemon {
namespace {

using Json = nlohmann::json;

constexpr char kExtension[] = "io.cri-containerd.container.metadata";
constexpr const char* kNamespaceOptions[] = {"Metadata", "Config", "linux", "security_context",
                                             "namespace_options"};

}  // namespace

absl::StatusOr<std::string> TargetContainer(
    const containerd::services::containers::v1::Container& container) {
  const auto extension = container.extensions().find(kExtension);
  if (extension == container.extensions().end()) return "";
  const Json metadata = Json::parse(extension->second.value(), nullptr, /*allow_exceptions=*/false);
  const Json* options = &metadata;
  for (const char* name : kNamespaceOptions) {
    const auto member = options->find(name);
    if (member == options->end()) return "";
    options = &*member;
  }
  const auto pid = options->find("pid");
  if (pid == options->end() || *pid != Json(static_cast<int>(runtime::v1::TARGET))) return "";
  const auto target = options->find("target_id");
  if (target == options->end() || !target->is_string()) return "";
  std::string id = target->get<std::string>();
  const absl::Status valid = ValidateId(id, "namespace_options.target_id");
  if (!valid.ok()) return valid;
  return id;
}

}  // namespace magnetar::daemon
