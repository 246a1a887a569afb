#include "src/daemon/sandbox/pod_request.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {
namespace {

using runtime::v1::LinuxContainerResources;
using runtime::v1::NamespaceOption;

// It is kept in the record, which a later daemon must be able to read.
constexpr size_t kMaxPodConfigBytes = 1 << 20;
// The longest name of a socket in a sandbox's directory, with one byte more than
// it has: containerd's streaming dials "//dir/...".
constexpr std::string_view kLongestSocket = "/vmm/virtiofs.sock ";

absl::Status CannotGive(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("linux.security_context.namespace_options.", field,
                                                 ": ", what,
                                                 " cannot be given to a pod that runs in a VM"));
}

absl::Status CheckNamespaces(const NamespaceOption& options) {
  if (options.network() == runtime::v1::NODE) {
    return CannotGive("network", "the host's network (hostNetwork)");
  }
  if (options.pid() == runtime::v1::NODE) {
    return CannotGive("pid", "the host's pid namespace (hostPID)");
  }
  if (options.ipc() == runtime::v1::NODE) {
    return CannotGive("ipc", "the host's ipc namespace (hostIPC)");
  }
  // An absent message and mode NODE both say that the pod uses the node's own.
  if (options.has_userns_options() && options.userns_options().mode() == runtime::v1::POD) {
    return CannotGive("userns_options", "a user namespace");
  }
  return absl::OkStatus();
}

// A name or word that goes into a file of its own lines.
absl::Status CheckWord(absl::string_view word, absl::string_view field) {
  for (const char c : word) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": holds a control character"));
    }
  }
  return absl::OkStatus();
}

// What a machine can have; nothing that is computed from it overflows.
struct ResourceRange {
  const char* name;
  int64_t (LinuxContainerResources::*get)() const;
  void (LinuxContainerResources::*set)(int64_t);
  int64_t least;
  int64_t most;
};

constexpr ResourceRange kResourceRanges[] = {
    {"cpu_period", &LinuxContainerResources::cpu_period, &LinuxContainerResources::set_cpu_period,
     0, int64_t{1} << 40},
    // -1: none.
    {"cpu_quota", &LinuxContainerResources::cpu_quota, &LinuxContainerResources::set_cpu_quota, -1,
     int64_t{1} << 40},
    {"cpu_shares", &LinuxContainerResources::cpu_shares, &LinuxContainerResources::set_cpu_shares,
     0, int64_t{1} << 40},
    {"memory_limit_in_bytes", &LinuxContainerResources::memory_limit_in_bytes,
     &LinuxContainerResources::set_memory_limit_in_bytes, -1, int64_t{1} << 46},
};

absl::Status CheckResources(const LinuxContainerResources& resources, absl::string_view field) {
  for (const ResourceRange& range : kResourceRanges) {
    const int64_t value = (resources.*range.get)();
    if (value >= range.least && value <= range.most) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".", range.name, ": ", value, " is not between ", range.least, " and ", range.most));
  }
  return absl::OkStatus();
}

absl::Status CheckConfig(const runtime::v1::PodSandboxConfig& config) {
  MAGNETAR_RETURN_IF_ERROR(CheckNamespaces(config.linux().security_context().namespace_options()));
  MAGNETAR_RETURN_IF_ERROR(CheckWord(config.hostname(), "hostname"));
  if (config.hostname().size() > 64) {
    return absl::InvalidArgumentError("hostname: is longer than 64 bytes");
  }
  for (const auto& s : config.dns_config().servers()) {
    MAGNETAR_RETURN_IF_ERROR(CheckWord(s, "dns_config.servers"));
  }
  for (const auto& s : config.dns_config().searches()) {
    MAGNETAR_RETURN_IF_ERROR(CheckWord(s, "dns_config.searches"));
  }
  for (const auto& s : config.dns_config().options()) {
    MAGNETAR_RETURN_IF_ERROR(CheckWord(s, "dns_config.options"));
  }
  MAGNETAR_RETURN_IF_ERROR(CheckResources(config.linux().resources(), "linux.resources"));
  MAGNETAR_RETURN_IF_ERROR(CheckResources(config.linux().overhead(), "linux.overhead"));
  const std::string& parent = config.linux().cgroup_parent();
  MAGNETAR_RETURN_IF_ERROR(CheckWord(parent, "linux.cgroup_parent"));
  for (const absl::string_view part : absl::StrSplit(parent, '/')) {
    if (part == "..") {
      return absl::InvalidArgumentError("linux.cgroup_parent: holds \"..\"");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadResources(const nlohmann::json& json, absl::string_view field,
                           LinuxContainerResources* out) {
  for (const ResourceRange& range : kResourceRanges) {
    const auto it = json.find(range.name);
    if (it == json.end() || it->is_null()) continue;
    const bool fits = it->is_number_integer() &&
                      (!it->is_number_unsigned() ||
                       it->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
    if (!fits) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".", range.name, ": is no integer of 64 bits"));
    }
    (out->*range.set)(it->get<int64_t>());
  }
  return CheckResources(*out, field);
}

}  // namespace

absl::StatusOr<PodRequest> ParseCreate(
    const containerd::services::sandbox::v1::ControllerCreateRequest& request,
    const std::string& run_dir) {
  PodRequest pod;
  pod.id = request.sandbox_id();
  MAGNETAR_RETURN_IF_ERROR(ValidateId(pod.id, "sandbox_id"));
  const size_t path = run_dir.size() + 1 + pod.id.size() + kLongestSocket.size();
  if (path >= sizeof(sockaddr_un{}.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sandbox_id: too long for the names of sockets below ", run_dir));
  }
  // Without options a plain VM: whoever is no CRI has none to give.
  const bool has_options = request.has_options() && !request.options().type_url().empty();
  if (has_options && !absl::EndsWith(request.options().type_url(), "runtime.v1.PodSandboxConfig")) {
    return absl::InvalidArgumentError(absl::StrCat("options: is a \"", request.options().type_url(),
                                                   "\", not a runtime.v1.PodSandboxConfig"));
  }
  if (request.options().value().size() > kMaxPodConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("options: PodSandboxConfig is longer than ", kMaxPodConfigBytes, " bytes"));
  }
  if (!pod.config.ParseFromString(request.options().value())) {
    return absl::InvalidArgumentError("options: PodSandboxConfig does not parse");
  }
  MAGNETAR_RETURN_IF_ERROR(CheckConfig(pod.config));
  // None: a pod without a network.
  if (!request.netns_path().empty() && request.netns_path().front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("netns_path: ", request.netns_path(), " is not absolute"));
  }
  pod.netns_path = request.netns_path();
  const auto& extensions = request.sandbox().extensions();
  if (const auto it = extensions.find("metadata"); it != extensions.end()) {
    // containerd's own record of the pod; only the handler's name is of interest.
    const auto json = nlohmann::json::parse(it->second.value(), nullptr, false);
    if (json.is_object() && json.contains("Metadata") && json["Metadata"].is_object()) {
      const auto& metadata = json["Metadata"];
      const auto handler = metadata.find("RuntimeHandler");
      if (handler != metadata.end() && handler->is_string()) {
        pod.runtime_handler = handler->get<std::string>();
      }
    }
  }
  return pod;
}

absl::Status CheckNetns(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("netns_path: open ", path, ": ", std::strerror(errno)));
  }
  struct statfs fs;
  if (::fstatfs(fd.get(), &fs) != 0 || fs.f_type != NSFS_MAGIC ||
      ::ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET) {
    return absl::InvalidArgumentError(
        absl::StrCat("netns_path: ", path, " is no network namespace"));
  }
  return absl::OkStatus();
}

std::string ResolvConf(const runtime::v1::DNSConfig& dns) {
  std::string out;
  if (dns.searches_size() > 0) {
    absl::StrAppend(&out, "search ", absl::StrJoin(dns.searches(), " "), "\n");
  }
  for (const std::string& server : dns.servers())
    absl::StrAppend(&out, "nameserver ", server, "\n");
  if (dns.options_size() > 0) {
    absl::StrAppend(&out, "options ", absl::StrJoin(dns.options(), " "), "\n");
  }
  return out;
}

std::string HostsFile(const std::string& hostname, const std::vector<std::string>& addresses) {
  std::string out =
      "127.0.0.1\tlocalhost\n"
      "::1\tlocalhost ip6-localhost ip6-loopback\n"
      "fe00::0\tip6-localnet\n"
      "ff02::1\tip6-allnodes\n"
      "ff02::2\tip6-allrouters\n";
  if (hostname.empty()) return out;
  for (const std::string& address : addresses) {
    const absl::string_view ip = absl::string_view(address).substr(0, address.find('/'));
    if (absl::StartsWith(ip, "fe80:")) continue;
    absl::StrAppend(&out, ip, "\t", hostname, "\n");
  }
  return out;
}

absl::StatusOr<UpdatedResources> ParseUpdatedResources(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("extensions[updated-resources]: is no JSON object");
  }
  // Without them every limit would be lifted.
  const auto resources = json.find("Resources");
  if (resources == json.end() || !resources->is_object()) {
    return absl::InvalidArgumentError("extensions[updated-resources]: has no Resources");
  }
  UpdatedResources updated;
  MAGNETAR_RETURN_IF_ERROR(ReadResources(*resources, "Resources", &updated.resources));
  const auto overhead = json.find("Overhead");
  if (overhead != json.end() && overhead->is_object()) {
    MAGNETAR_RETURN_IF_ERROR(ReadResources(*overhead, "Overhead", &updated.overhead));
  }
  return updated;
}

}  // namespace magnetar::daemon
