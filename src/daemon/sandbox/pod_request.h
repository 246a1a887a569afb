#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "containerd/sandbox.pb.h"
#include "cri/runtime.pb.h"
#include "src/daemon/cgroup/sandbox_cgroup.h"
#include "src/daemon/config/config.h"

// What containerd asks for, checked and turned into what a VM needs. No state, no I/O
// but CheckNetns.
namespace magnetar::daemon {

struct PodRequest {
  std::string id;
  std::string netns_path;
  std::string runtime_handler;
  runtime::v1::PodSandboxConfig config;
};

// INVALID_ARGUMENT names the field that is wrong or that a VM cannot give.
absl::StatusOr<PodRequest> ParseCreate(
    const containerd::services::sandbox::v1::ControllerCreateRequest& request,
    const std::string& run_dir);

// INVALID_ARGUMENT if the path is no network namespace. Blocks.
absl::Status CheckNetns(const std::string& path);

// Files that the pod's containers see.
std::string ResolvConf(const runtime::v1::DNSConfig& dns);
std::string HostsFile(const std::string& hostname, const std::vector<std::string>& addresses);

// `{"Overhead": ..., "Resources": ...}` of the extension "updated-resources"
// (containerd 2.3, sandbox_update_resources.go).
struct UpdatedResources {
  runtime::v1::LinuxContainerResources overhead;
  runtime::v1::LinuxContainerResources resources;
};
// INVALID_ARGUMENT names what is missing or out of range.
absl::StatusOr<UpdatedResources> ParseUpdatedResources(const std::string& json);

}  // namespace magnetar::daemon
