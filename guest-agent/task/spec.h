#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace magnetar::guest {

// What the agent itself needs to know of a container's OCI spec.
struct SpecFacts {
  // "/pod/<id>", below the root of the guest's cgroups.
  std::string cgroups_path;
  // No pid namespace of its own: it joins one, or has none.
  bool shared_pid_namespace = false;
  // It joins the pod's, which the agent must hold.
  bool needs_pod_pid_namespace = false;
};

// Where the pod's pid namespace is held for containers that share it.
inline constexpr char kPodPidNamespace[] = "/run/magnetar/pod/ns/pid";

// INVALID_ARGUMENT if it is no spec or its cgroup is not below /pod.
absl::StatusOr<SpecFacts> ReadSpecFacts(const std::string& json);

}  // namespace magnetar::guest
