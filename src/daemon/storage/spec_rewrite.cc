#include "src/daemon/storage/spec_rewrite.h"

#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/guest_spec.h"
#include "magnetar/spec_json.h"
#include "magnetar/status.h"
#include "src/daemon/storage/spec_devices.h"
#include "src/daemon/storage/spec_huge_pages.h"
#include "src/daemon/storage/spec_mounts.h"

namespace magnetar::daemon {
namespace {

absl::Status Unsupported(const std::string& field, const std::string& why) {
  return absl::FailedPreconditionError(absl::StrCat(field, ": ", why));
}

// What is left out of a spec. Silent: of other systems, so that nothing is lost.
struct DroppedField {
  const char* parent;  // "" is the top
  const char* key;
  bool silent;
};
constexpr DroppedField kDropped[] = {
    {"", "windows", true},
    {"", "solaris", true},
    {"", "vm", true},
    {"", "zos", true},
    {"", "hooks", true},  // refused unless empty
    {"linux", "mountLabel", false},
    {"linux", "intelRdt", false},
};

// Annotations that command the guest's crun (its docs/crun.1) or CRIU: they name paths in the
// agent's file system, sockets and filters, and are no business of a pod.
constexpr const char* kDroppedAnnotations[] = {"run.oci.", "org.criu."};

// Where a namespace of the pod is in the guest; `path` stands for whatever the host's was.
struct NamespaceRule {
  const char* type;
  const char* guest_path;   // nullptr: one with a path is refused
  const char* refuse_path;  // why
  bool required;
};
constexpr NamespaceRule kNamespaces[] = {
    {"network", "/proc/1/ns/net", nullptr, false},
    {"ipc", "/proc/1/ns/ipc", nullptr, false},
    {"uts", "/proc/1/ns/uts", nullptr, false},
    {"pid", "/run/magnetar/pod/ns/pid", nullptr, true},
    {"mount", nullptr, "a mount namespace of the host cannot be entered in a VM", true},
    {"cgroup", "", nullptr, false},  // the host's path is left out: a new one
    {"time", nullptr, "a time namespace of the host cannot be entered in a VM", false},
};

// What the guest's crun takes (Debian 12's 1.8.1 refuses every version but 1.0.x, though it knows
// what containerd writes under 1.1 and 1.2).
constexpr char kGuestOciVersion[] = "1.0.2";

absl::Status CheckHooks(Json& spec) {
  absl::StatusOr<Json*> hooks = FindObject(spec, "", "hooks");
  if (!hooks.ok()) return hooks.status();
  if (*hooks == nullptr) return absl::OkStatus();
  for (const auto& [name, list] : (*hooks)->items()) {
    if (HasContent(**hooks, name.c_str())) {
      return Unsupported(absl::StrCat("hooks.", absl::CHexEscape(name)),
                         "OCI hooks are programs of the host and cannot run in a VM");
    }
  }
  return absl::OkStatus();
}

absl::Status DropFields(Json& spec, std::vector<std::string>& dropped) {
  for (const DroppedField& field : kDropped) {
    Json* parent = &spec;
    if (*field.parent != '\0') {
      absl::StatusOr<Json*> found = FindObject(spec, "", field.parent);
      if (!found.ok()) return found.status();
      parent = *found;
    }
    if (parent == nullptr) continue;
    if (!field.silent && HasContent(*parent, field.key)) {
      dropped.push_back(absl::StrCat(field.parent, ".", field.key));
    }
    parent->erase(field.key);
  }
  return absl::OkStatus();
}

const NamespaceRule* FindNamespaceRule(const std::string& type) {
  for (const NamespaceRule& rule : kNamespaces) {
    if (type == rule.type) return &rule;
  }
  return nullptr;
}

absl::Status RewriteNamespace(Json& entry, const std::string& where, const SpecRequest& request,
                              std::set<std::string>& seen) {
  if (!entry.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("spec: ", where, " is no object"));
  }
  absl::StatusOr<std::string> type = FindString(entry, where, "type");
  if (!type.ok()) return type.status();
  absl::StatusOr<std::string> path = FindString(entry, where, "path");
  if (!path.ok()) return path.status();
  if (*type == "user") {
    return Unsupported("linux.namespaces: user", "user namespaces are not supported");
  }
  const NamespaceRule* rule = FindNamespaceRule(*type);
  if (rule == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": namespace type \"", absl::CHexEscape(*type), "\" is not known"));
  }
  if (!seen.insert(*type).second) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": a second ", *type, " namespace"));
  }
  if (path->empty()) return absl::OkStatus();
  if (rule->guest_path == nullptr) {
    return Unsupported(absl::StrCat("linux.namespaces: ", *type), rule->refuse_path);
  }
  if (*type == "pid" && !request.target_pid_namespace.empty()) {
    entry["path"] = request.target_pid_namespace;
    return absl::OkStatus();
  }
  // Every container's pid on the host is the VMM's: the path does not say whose it is.
  if (*type == "pid" && !request.pod_shares_pids) {
    return Unsupported(
        "linux.namespaces: pid",
        "it has a path, but neither does the pod share its pid namespace, nor does "
        "CRI's metadata of the container name a target (namespace_options.target_id)");
  }
  if (*rule->guest_path == '\0') {
    entry.erase("path");
  } else {
    entry["path"] = rule->guest_path;
  }
  return absl::OkStatus();
}

absl::Status RewriteNamespaces(Json& linux_section, const SpecRequest& request) {
  absl::StatusOr<Json*> namespaces = FindArray(linux_section, "linux", "namespaces");
  if (!namespaces.ok()) return namespaces.status();
  std::set<std::string> seen;
  if (*namespaces != nullptr) {
    for (size_t i = 0; i < (*namespaces)->size(); ++i) {
      MAGNETAR_RETURN_IF_ERROR(RewriteNamespace(
          (**namespaces)[i], absl::StrCat("linux.namespaces[", i, "]"), request, seen));
    }
  }
  for (const NamespaceRule& rule : kNamespaces) {
    if (rule.required && seen.count(rule.type) == 0) {
      return Unsupported(absl::StrCat("linux.namespaces: ", rule.type),
                         "a container cannot share the host's, nor the guest agent's");
    }
  }
  // containerd asks for one only where the host itself has cgroup v2. The guest
  // always has: without it a container would see the pod's tree instead of its own.
  if (seen.count("cgroup") == 0) (**namespaces).push_back({{"type", "cgroup"}});
  for (const char* mapping : {"uidMappings", "gidMappings"}) {
    if (HasContent(linux_section, mapping)) {
      return Unsupported(absl::StrCat("linux.", mapping), "user namespaces are not supported");
    }
  }
  return absl::OkStatus();
}

absl::Status RewriteResources(Json& linux_section, const SpecRequest& request,
                              RewrittenSpec& result) {
  absl::StatusOr<Json*> resources = FindObject(linux_section, "linux", "resources");
  if (!resources.ok()) return resources.status();
  if (*resources == nullptr) return absl::OkStatus();
  MAGNETAR_RETURN_IF_ERROR(ReduceResources(**resources, result.dropped));
  return RewriteHugePages(**resources, request, result);
}

absl::Status RewriteProcess(Json& spec, std::vector<std::string>& dropped) {
  absl::StatusOr<Json*> process = FindObject(spec, "", "process");
  if (!process.ok()) return process.status();
  if (*process != nullptr) ReduceProcess(**process, dropped);
  return absl::OkStatus();
}

absl::Status DropAnnotations(Json& spec, std::vector<std::string>& dropped) {
  absl::StatusOr<Json*> annotations = FindObject(spec, "", "annotations");
  if (!annotations.ok()) return annotations.status();
  if (*annotations == nullptr) return absl::OkStatus();
  for (const char* prefix : kDroppedAnnotations) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : (*annotations)->items()) {
      if (absl::StartsWith(key, prefix)) keys.push_back(key);
    }
    for (const std::string& key : keys) (*annotations)->erase(key);
    if (!keys.empty()) dropped.push_back(absl::StrCat("annotations.", prefix, "*"));
  }
  return absl::OkStatus();
}

absl::Status RewriteLinux(Json& spec, const SpecRequest& request, RewrittenSpec& result) {
  absl::StatusOr<Json*> found = FindObject(spec, "", "linux");
  if (!found.ok()) return found.status();
  if (*found == nullptr) return absl::InvalidArgumentError("spec: no linux section");
  Json& linux_section = **found;
  MAGNETAR_RETURN_IF_ERROR(RewriteNamespaces(linux_section, request));
  MAGNETAR_RETURN_IF_ERROR(RewriteDevices(linux_section, request, result));
  MAGNETAR_RETURN_IF_ERROR(RewriteResources(linux_section, request, result));
  linux_section["cgroupsPath"] = absl::StrCat("/pod/", request.container_id);

  absl::StatusOr<Json*> seccomp = FindObject(linux_section, "linux", "seccomp");
  if (!seccomp.ok()) return seccomp.status();
  if (*seccomp != nullptr && HasContent(**seccomp, "listenerPath")) {
    return Unsupported("linux.seccomp.listenerPath",
                       "a socket of the host cannot be reached from a VM");
  }
  return absl::OkStatus();
}

absl::Status RewriteRoot(Json& spec, const SpecRequest& request) {
  absl::StatusOr<Json*> root = FindObject(spec, "", "root");
  if (!root.ok()) return root.status();
  if (*root == nullptr) return absl::InvalidArgumentError("spec: no root section");
  (**root)["path"] = request.guest_rootfs;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RewrittenSpec> RewriteSpec(const std::string& spec_json,
                                          const SpecRequest& request) {
  absl::StatusOr<Json> spec = ParseSpecJson(spec_json);
  if (!spec.ok()) return spec.status();
  RewrittenSpec result;
  MAGNETAR_RETURN_IF_ERROR(CheckHooks(*spec));
  (*spec)["ociVersion"] = kGuestOciVersion;
  MAGNETAR_RETURN_IF_ERROR(DropFields(*spec, result.dropped));
  MAGNETAR_RETURN_IF_ERROR(DropAnnotations(*spec, result.dropped));
  MAGNETAR_RETURN_IF_ERROR(RewriteProcess(*spec, result.dropped));
  MAGNETAR_RETURN_IF_ERROR(RewriteRoot(*spec, request));
  MAGNETAR_RETURN_IF_ERROR(RewriteMounts(*spec, request, result));
  MAGNETAR_RETURN_IF_ERROR(RewriteLinux(*spec, request, result));
  result.json = SpecText(*spec);
  return result;
}

}  // namespace magnetar::daemon
