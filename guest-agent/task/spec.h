#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace magnetar::guest {

// What the agent itself needs to know of a container's OCI spec.
struct SpecFacts {
  // "/pod/<id>", below the root of the guest's cgroups.
  std::string cgroups_path;
  // It joins the pod's, which the agent must hold.
  bool needs_pod_pid_namespace = false;
};

// Where the pod's pid namespace is held for containers that share it.
inline constexpr char kPodPidNamespace[] = "/run/magnetar/pod/ns/pid";

// INVALID_ARGUMENT if it is no spec or its cgroup is not below /pod.
absl::StatusOr<SpecFacts> ReadSpecFacts(const std::string& json);

// An exec's OCI process as the guest runs it: without the security labels, which belong to
// the host's kernel and are dropped from a container's own process too. INVALID_ARGUMENT
// unless it is a JSON object.
absl::StatusOr<std::string> GuestProcess(std::string json);

// INVALID_ARGUMENT unless it is one JSON object.
absl::Status CheckJsonObject(const std::string& json, const std::string& what);

}  // namespace magnetar::guest
