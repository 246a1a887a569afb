#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/spec_json.h"

// The parts of an OCI spec that reach a guest on two ways: the host rewrites a container's
// spec, and containerd sends the guest the resources of an update and the process of an exec,
// both taken from the spec as the host has it. What has no meaning in a guest is taken out by one
// table, so that nothing comes back on the second way.
namespace magnetar {

// `linux.resources`. What said something and was taken out is added to `dropped`:
// "linux.resources.cpu.cpus". INVALID_ARGUMENT names a field of the wrong type.
absl::Status ReduceResources(Json& resources, std::vector<std::string>& dropped);

// `process`: labels of the host's security modules.
void ReduceProcess(Json& process, std::vector<std::string>& dropped);

// The same for a text of its own, of an update or an exec. Of an update's resources the rules for
// devices go, too. INVALID_ARGUMENT if it is no JSON object.
absl::StatusOr<std::string> ReducedResources(const std::string& json);
absl::StatusOr<std::string> ReducedProcess(const std::string& json);

// JSON of a spec; what is no UTF-8 in it is replaced.
std::string SpecText(const Json& spec);

}  // namespace magnetar
