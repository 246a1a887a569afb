#pragma once

#include <string>
#include <utility>
#include <vector>

#include "magnetar/spec_json.h"
#include "src/daemon/storage/spec_rewrite.h"

// A spec as containerd's CRI writes it, and what becomes of it.
namespace magnetar::daemon {

inline constexpr char kSandbox[] = "5a4d";
inline constexpr char kSandboxFiles[] = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/5a4d/";

inline SpecRequest Request() {
  SpecRequest request;
  request.sandbox_id = kSandbox;
  request.container_id = "c1";
  request.guest_rootfs = "/run/magnetar/shared/c1/rootfs";
  request.guest_mounts = "/run/magnetar/shared/c1";
  request.guest_hostname = "/run/magnetar/pod/hostname";
  request.guest_hosts = "/run/magnetar/pod/hosts";
  request.guest_resolv_conf = "/run/magnetar/pod/resolv.conf";
  request.guest_shm = "/run/magnetar/pod/shm";
  return request;
}

// The skeleton of what containerd's CRI writes.
inline Json Spec() {
  return Json::parse(R"({
    "ociVersion": "1.2.0",
    "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "oomScoreAdj": 999},
    "root": {"path": "rootfs"},
    "mounts": [],
    "linux": {
      "cgroupsPath": "/kubepods/pod1/c1",
      "namespaces": [
        {"type": "pid"}, {"type": "ipc", "path": "/proc/77/ns/ipc"},
        {"type": "uts", "path": "/proc/77/ns/uts"}, {"type": "mount"},
        {"type": "network", "path": "/proc/77/ns/net"}, {"type": "cgroup"}
      ],
      "resources": {},
      "maskedPaths": ["/proc/acpi"]
    }
  })");
}

inline Json Bind(const std::string& source, const std::string& destination,
                 std::vector<std::string> options = {"rbind", "rprivate", "rw"}) {
  return {{"source", source}, {"destination", destination}, {"type", "bind"}, {"options", options}};
}

struct Outcome {
  absl::Status status;
  RewrittenSpec result;
  Json spec;

  // The mount at a destination, or null.
  Json MountAt(const std::string& destination) const {
    for (const Json& mount : spec["mounts"]) {
      if (mount["destination"] == destination) return mount;
    }
    return Json();
  }
};

inline Outcome Rewrite(const Json& spec, const SpecRequest& request = Request()) {
  Outcome outcome;
  absl::StatusOr<RewrittenSpec> result = RewriteSpec(spec.dump(), request);
  outcome.status = result.status();
  if (!result.ok()) return outcome;
  outcome.result = *std::move(result);
  outcome.spec = Json::parse(outcome.result.json);
  return outcome;
}

}  // namespace magnetar::daemon
