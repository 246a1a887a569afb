#include "src/shim/runtime_info.h"

#include <nlohmann/json.hpp>

namespace magnetar::shim {
namespace {

// Facts: containerd v2.2 plugins/services/introspection, OCI runtime-spec features.md.
constexpr char kFeaturesType[] =
    "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

nlohmann::json Features() {
  return {
      {"ociVersionMin", "1.0.0"},
      {"ociVersionMax", "1.1.0"},
      {"mountOptions", {"bind", "nodev", "noexec", "nosuid", "rbind", "ro", "rro", "rw", "size"}},
      {"linux",
       {{"namespaces", {"cgroup", "ipc", "mount", "network", "pid", "uts"}},
        {"cgroup", {{"v1", false}, {"v2", true}, {"systemd", false}}},
        {"seccomp", {{"enabled", true}}},
        {"apparmor", {{"enabled", false}}},
        {"selinux", {{"enabled", false}}}}}};
}

}  // namespace

containerd::types::RuntimeInfo BuildRuntimeInfo() {
  containerd::types::RuntimeInfo info;
  info.set_name("io.containerd.magnetar.v1");
  info.mutable_version()->set_version(MAGNETAR_VERSION);
  info.mutable_features()->set_type_url(kFeaturesType);
  info.mutable_features()->set_value(Features().dump());
  return info;
}

}  // namespace magnetar::shim
