#include "src/daemon/storage/spec_mounts.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

using ReadOnly = TreeOptions::ReadOnly;

// Filesystems that the guest's kernel makes by itself, whatever the host has.
constexpr const char* kKernelTypes[] = {"proc",   "sysfs",   "tmpfs",   "ramfs",
                                        "mqueue", "devpts",  "cgroup",  "cgroup2",
                                        "bpf",    "debugfs", "tracefs", "securityfs"};

// What an option of a bind mount means for the host and for the guest.
enum class BindOption {
  kPlain,  // not recursive
  kRecursive,
  kReadOnly,
  kReadWrite,
  kAllReadOnly,  // mounts below it too
  kAllReadWrite,
  kPrivate,
  kFollow,  // (r)slave: what the host mounts later is seen
  kShared,  // (r)shared: what the container mounts would be seen by the host
  kIdMapped,
  kDropped,  // of no meaning in a guest
};

constexpr struct {
  const char* name;
  BindOption meaning;
} kBindOptions[] = {
    {"bind", BindOption::kPlain},         {"rbind", BindOption::kRecursive},
    {"ro", BindOption::kReadOnly},        {"rro", BindOption::kAllReadOnly},
    {"rw", BindOption::kReadWrite},       {"rrw", BindOption::kAllReadWrite},
    {"private", BindOption::kPrivate},    {"rprivate", BindOption::kPrivate},
    {"unbindable", BindOption::kPrivate}, {"runbindable", BindOption::kPrivate},
    {"slave", BindOption::kFollow},       {"rslave", BindOption::kFollow},
    {"shared", BindOption::kShared},      {"rshared", BindOption::kShared},
    {"idmap", BindOption::kIdMapped},     {"ridmap", BindOption::kIdMapped},
    {"z", BindOption::kDropped},          {"Z", BindOption::kDropped},
};

// Files of the pod that the guest holds: containerd's CRI binds them from
// ".../sandboxes/<sandbox id>/<file>", the first three only if they exist there.
struct PodFile {
  const char* destination;
  const char* file;
  std::string SpecRequest::*guest_path;
  bool add_if_absent;
};
constexpr PodFile kPodFiles[] = {
    {"/etc/hostname", "hostname", &SpecRequest::guest_hostname, true},
    {"/etc/hosts", "hosts", &SpecRequest::guest_hosts, true},
    {"/etc/resolv.conf", "resolv.conf", &SpecRequest::guest_resolv_conf, true},
    {"/dev/shm", "shm", &SpecRequest::guest_shm, false},
};

struct Mount {
  size_t index = 0;
  std::string type;
  std::string source;
  std::string destination;
  std::vector<std::string> options;
};

absl::Status MountError(absl::StatusCode code, const Mount& mount, const std::string& what) {
  return absl::Status(code, absl::StrCat("mounts[", mount.index, "] ",
                                         absl::CHexEscape(mount.destination), ": ", what));
}
absl::Status Refuse(const Mount& mount, const std::string& what) {
  return MountError(absl::StatusCode::kFailedPrecondition, mount, what);
}
absl::Status Invalid(const Mount& mount, const std::string& what) {
  return MountError(absl::StatusCode::kInvalidArgument, mount, what);
}

absl::StatusOr<Mount> ReadMount(Json& json, size_t index) {
  const std::string where = absl::StrCat("mounts[", index, "]");
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("spec: ", where, " is no object"));
  }
  Mount mount;
  mount.index = index;
  const std::pair<const char*, std::string*> strings[] = {
      {"type", &mount.type}, {"source", &mount.source}, {"destination", &mount.destination}};
  for (const auto& [key, value] : strings) {
    absl::StatusOr<std::string> found = FindString(json, where, key);
    if (!found.ok()) return found.status();
    *value = *std::move(found);
  }
  absl::StatusOr<std::vector<std::string>> options = FindStrings(json, where, "options");
  if (!options.ok()) return options.status();
  mount.options = *std::move(options);
  if (mount.destination.empty()) return Invalid(mount, "no destination");
  for (const char* mapping : {"uidMappings", "gidMappings"}) {
    if (HasContent(json, mapping)) return Refuse(mount, "id-mapped mounts are not supported");
  }
  return mount;
}

bool IsBind(const Mount& mount) {
  if (mount.type == "bind" || mount.type == "rbind") return true;
  return std::any_of(mount.options.begin(), mount.options.end(), [](const std::string& option) {
    return option == "bind" || option == "rbind";
  });
}

bool IsKernelType(const std::string& type) {
  return std::find(std::begin(kKernelTypes), std::end(kKernelTypes), type) !=
         std::end(kKernelTypes);
}

// The pod's file that a bind mount stands for, or nullptr.
const PodFile* FindPodFile(const Mount& mount, const SpecRequest& request) {
  for (const PodFile& file : kPodFiles) {
    const std::string suffix = absl::StrCat("/sandboxes/", request.sandbox_id, "/", file.file);
    if (CleanPath(mount.destination) == file.destination &&
        absl::EndsWith(CleanPath(mount.source), suffix)) {
      return &file;
    }
  }
  return nullptr;
}

// What a spec has at /dev/shm when nothing was asked for. containerd's CRI replaces it by a bind of
// the pod's, but only for the sandboxes of its own sandboxer: for others it leaves this
// (containerd v2.1.9, internal/cri/server/container_create.go).
bool IsDefaultShm(const Mount& mount) {
  const auto has = [&mount](absl::string_view option) {
    return std::find(mount.options.begin(), mount.options.end(), option) != mount.options.end();
  };
  return mount.type == "tmpfs" && mount.source == "shm" &&
         CleanPath(mount.destination) == "/dev/shm" && has("size=65536k") && !has("ro");
}

// POSIX shared memory goes with the IPC namespace.
bool SharesIpc(Json& spec) {
  const absl::StatusOr<Json*> section = FindObject(spec, "", "linux");
  if (!section.ok() || *section == nullptr) return false;
  const absl::StatusOr<Json*> namespaces = FindArray(**section, "linux", "namespaces");
  if (!namespaces.ok() || *namespaces == nullptr) return false;
  return std::any_of((*namespaces)->begin(), (*namespaces)->end(), [](const Json& entry) {
    return entry.is_object() && entry.contains("type") && entry["type"] == Json("ipc") &&
           HasContent(entry, "path");
  });
}

const char* GuestAccess(ReadOnly read_only) {
  switch (read_only) {
    case ReadOnly::kNo:
      return "rw";
    case ReadOnly::kTop:
      return "ro";
    case ReadOnly::kAll:
      break;
  }
  return "rro";
}

// What the mount says to the host goes to `bind`, and what is left for the guest to `guest`.
absl::Status ReadBindOptions(const Mount& mount, HostBind& bind, std::vector<std::string>& guest) {
  guest.push_back("rbind");
  guest.push_back("rprivate");
  // Independent of each other: what makes all read-only, "rw" does not undo.
  bool top = false, all = false;
  for (const std::string& option : mount.options) {
    const auto* known = std::find_if(std::begin(kBindOptions), std::end(kBindOptions),
                                     [&option](const auto& entry) { return option == entry.name; });
    if (known == std::end(kBindOptions)) {
      guest.push_back(option);
      continue;
    }
    switch (known->meaning) {
      case BindOption::kPlain:
        bind.recursive = false;
        break;
      case BindOption::kRecursive:
        bind.recursive = true;
        break;
      case BindOption::kReadOnly:
        top = true;
        break;
      case BindOption::kReadWrite:
        top = false;
        break;
      case BindOption::kAllReadOnly:
        all = true;
        break;
      case BindOption::kAllReadWrite:
        all = false;
        break;
      case BindOption::kPrivate:
        bind.follow_host = false;
        break;
      case BindOption::kFollow:
        bind.follow_host = true;
        break;
      case BindOption::kShared:
        return Refuse(mount, absl::StrCat("mount propagation \"", option,
                                          "\": mounts made in a VM cannot reach the host"));
      case BindOption::kIdMapped:
        return Refuse(mount, "id-mapped mounts are not supported");
      case BindOption::kDropped:
        break;
    }
  }
  bind.read_only = all ? ReadOnly::kAll : top ? ReadOnly::kTop : ReadOnly::kNo;
  guest.emplace_back(GuestAccess(bind.read_only));
  return absl::OkStatus();
}

absl::Status CheckSource(const Mount& mount) {
  if (mount.source.empty() || mount.source.front() != '/') {
    return Invalid(
        mount, absl::StrCat("source \"", absl::CHexEscape(mount.source), "\" is no absolute path"));
  }
  if (mount.source.find('\0') != std::string::npos) return Invalid(mount, "source holds a NUL");
  if (CleanPath(mount.source) == "/") {
    return Refuse(mount, "the host's root directory cannot be shared with a VM");
  }
  return absl::OkStatus();
}

Json BindJson(const std::string& destination, const std::string& source,
              std::vector<std::string> options) {
  Json json = Json::object();
  json["destination"] = destination;
  json["type"] = "bind";
  json["source"] = source;
  json["options"] = std::move(options);
  return json;
}

absl::Status RewriteBind(const Mount& mount, const SpecRequest& request, Json& json,
                         RewrittenSpec& result) {
  HostBind bind;
  bind.recursive = mount.type == "rbind";
  std::vector<std::string> options;
  MAGNETAR_RETURN_IF_ERROR(ReadBindOptions(mount, bind, options));

  if (const PodFile* file = FindPodFile(mount, request)) {
    const std::string& guest_path = request.*file->guest_path;
    if (!guest_path.empty()) {
      json = BindJson(mount.destination, guest_path, std::move(options));
      return absl::OkStatus();
    }
  }
  if (const auto volume = request.guest_volumes.find(mount.index);
      volume != request.guest_volumes.end()) {
    json = BindJson(mount.destination, volume->second, std::move(options));
    return absl::OkStatus();
  }

  MAGNETAR_RETURN_IF_ERROR(CheckSource(mount));
  bind.index = mount.index;
  bind.name = absl::StrCat("m", mount.index);
  bind.source = mount.source;
  bind.destination = mount.destination;
  // What the host mounts later would come writable, and the host could not keep it from the VM.
  if (bind.read_only != ReadOnly::kNo && bind.follow_host) {
    bind.follow_host = false;
    result.dropped.push_back("mounts: propagation from the host below a read-only bind");
  }
  json = BindJson(mount.destination, absl::StrCat(request.guest_mounts, "/", bind.name),
                  std::move(options));
  result.binds.push_back(std::move(bind));
  return absl::OkStatus();
}

}  // namespace

std::string CleanPath(const std::string& path) {
  std::vector<std::string> parts;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(path, '/'))) {
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
      continue;
    }
    parts.push_back(part);
  }
  return absl::StrCat("/", absl::StrJoin(parts, "/"));
}

absl::Status RewriteMounts(Json& spec, const SpecRequest& request, RewrittenSpec& result) {
  absl::StatusOr<Json*> mounts = FindArray(spec, "", "mounts");
  if (!mounts.ok()) return mounts.status();
  if (*mounts == nullptr) {
    spec["mounts"] = Json::array();
    *mounts = &spec["mounts"];
  }

  const bool shares_shm = !request.guest_shm.empty() && SharesIpc(spec);
  std::vector<std::string> destinations;
  for (size_t i = 0; i < (*mounts)->size(); ++i) {
    Json& json = (**mounts)[i];
    absl::StatusOr<Mount> mount = ReadMount(json, i);
    if (!mount.ok()) return mount.status();
    destinations.push_back(CleanPath(mount->destination));
    if (IsBind(*mount)) {
      MAGNETAR_RETURN_IF_ERROR(RewriteBind(*mount, request, json, result));
    } else if (shares_shm && IsDefaultShm(*mount)) {
      json = BindJson(mount->destination, request.guest_shm, {"rbind", "rprivate", "rw"});
    } else if (!IsKernelType(mount->type)) {
      return Invalid(
          *mount, absl::StrCat("mount type \"", absl::CHexEscape(mount->type), "\" is not known"));
    }
  }

  // CRI gives them the access that the root filesystem has.
  const auto root = spec.find("root");
  const bool read_only = root != spec.end() && root->is_object() && root->contains("readonly") &&
                         (*root)["readonly"] == Json(true);
  for (const PodFile& file : kPodFiles) {
    const std::string& guest_path = request.*file.guest_path;
    if (!file.add_if_absent || guest_path.empty()) continue;
    if (std::find(destinations.begin(), destinations.end(), file.destination) !=
        destinations.end()) {
      continue;
    }
    (*mounts)->push_back(
        BindJson(file.destination, guest_path, {"rbind", "rprivate", read_only ? "ro" : "rw"}));
  }
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
