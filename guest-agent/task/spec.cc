#include "guest-agent/task/spec.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "guest-agent/storage/container_mounts.h"

namespace magnetar::guest {
namespace {

using Json = nlohmann::json;

// The member if it is there and of the type, else an empty one of it.
Json Member(const Json& object, const char* name, Json::value_t type) {
  if (object.is_object()) {
    const auto it = object.find(name);
    if (it != object.end() && it->type() == type) return *it;
  }
  return Json(type);
}

}  // namespace

absl::StatusOr<SpecFacts> ReadSpecFacts(const std::string& json) {
  const Json spec = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!spec.is_object())
    return absl::InvalidArgumentError("the container's spec is no JSON object");
  const Json linux = Member(spec, "linux", Json::value_t::object);
  SpecFacts facts;
  facts.cgroups_path = Member(linux, "cgroupsPath", Json::value_t::string).get<std::string>();
  const absl::Status below = CheckBelow(facts.cgroups_path, "/pod");
  if (!below.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("linux.cgroupsPath: ", below.message()));
  }
  facts.shared_pid_namespace = true;
  for (const Json& entry : Member(linux, "namespaces", Json::value_t::array)) {
    if (Member(entry, "type", Json::value_t::string) != "pid") continue;
    const std::string path = Member(entry, "path", Json::value_t::string).get<std::string>();
    facts.shared_pid_namespace = !path.empty();
    facts.needs_pod_pid_namespace = path == kPodPidNamespace;
  }
  return facts;
}

}  // namespace magnetar::guest
