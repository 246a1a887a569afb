#include "guest-agent/pod/pod.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/pod/pid_namespace.h"
#include "guest-agent/storage/mount.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

constexpr uint64_t kDefaultShmBytes = 64 << 20;
constexpr uint64_t kDefaultReserveBytes = 32 << 20;

// The host makes its streams as soon as this guest has knocked.
constexpr std::chrono::seconds kStreamTimeout{20};

absl::StatusOr<bool> IsMounted(const std::string& path) {
  const auto mounts = MountsBelow(path);
  if (!mounts.ok()) return mounts.status();
  for (const std::string& mount : *mounts) {
    if (mount == path) return true;
  }
  return false;
}

// Containers have bound the file: it is written in place when it is already there.
absl::Status WritePodFile(const std::string& path, const std::string& contents) {
  const absl::StatusOr<std::string> now = ReadFile(path);
  if (now.ok() && *now == contents) return absl::OkStatus();
  if (now.ok()) {
    if (::truncate(path.c_str(), 0) != 0) return ErrnoStatus(errno, path);
    return contents.empty() ? absl::OkStatus() : WriteExisting(path, contents);
  }
  return WriteFileAtomically(path, contents, 0644);
}

}  // namespace

std::string Pod::sandbox_id() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return sandbox_id_;
}

absl::Status Pod::Setup(const agent::v1::SetupSandboxRequest& request) {
  MAGNETAR_RETURN_IF_ERROR(ValidateId(request.sandbox_id(), "sandbox_id"));
  if (request.vmm_pid() == 0) return absl::InvalidArgumentError("vmm_pid: must not be 0");
  const std::string current = sandbox_id();
  if (!current.empty() && current != request.sandbox_id()) {
    return absl::FailedPreconditionError(absl::StrCat("this VM is sandbox ", current));
  }
  SetLogSandbox(request.sandbox_id());
  if (!request.entropy().empty()) {
    // Without it the pool is only poorer.
    const absl::Status stirred = AddEntropy(request.entropy());
    if (!stirred.ok()) Log(LogLevel::kWarn, "no entropy added: ", stirred.message());
  }
  MAGNETAR_RETURN_IF_ERROR(Annotate(SetHostname(request.hostname()), "hostname"));
  MAGNETAR_RETURN_IF_ERROR(Annotate(WriteFiles(request), "pod files"));
  MAGNETAR_RETURN_IF_ERROR(Annotate(MountShm(request.shm_size_bytes()), "shm"));
  MAGNETAR_RETURN_IF_ERROR(Annotate(MountShared(request), "shared directory"));
  const uint64_t reserve =
      request.memory_reserve_bytes() == 0 ? kDefaultReserveBytes : request.memory_reserve_bytes();
  const absl::StatusOr<uint64_t> total = ReadMeminfo(paths_.meminfo, "MemTotal");
  if (!total.ok()) return total.status();
  MAGNETAR_RETURN_IF_ERROR(Annotate(memory_.Start(*total, reserve), "memory limit"));
  MAGNETAR_RETURN_IF_ERROR(Annotate(configure_network_(request.network()), "network"));
  // After the network: some of them belong to an interface.
  for (const auto& [name, value] : request.sysctls()) {
    MAGNETAR_RETURN_IF_ERROR(Annotate(WriteSysctl(paths_.proc_sys, name, value), "sysctl"));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  sandbox_id_ = request.sandbox_id();
  vmm_pid_ = request.vmm_pid();
  return absl::OkStatus();
}

absl::Status Pod::SetHostname(const std::string& hostname) {
  if (hostname.empty()) return absl::OkStatus();
  if (::sethostname(hostname.data(), hostname.size()) != 0) {
    return ErrnoStatus(errno, "sethostname");
  }
  return absl::OkStatus();
}

absl::Status Pod::WriteFiles(const agent::v1::SetupSandboxRequest& request) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(paths_.pod, 0755));
  const std::pair<const char*, std::string> files[] = {
      {"hostname", request.hostname().empty() ? "" : absl::StrCat(request.hostname(), "\n")},
      {"hosts", request.hosts()},
      {"resolv.conf", request.resolv_conf()}};
  // All of them, empty ones too: containers get them bound without a look at what is in them.
  for (const auto& [name, contents] : files) {
    MAGNETAR_RETURN_IF_ERROR(WritePodFile(absl::StrCat(paths_.pod, "/", name), contents));
  }
  return absl::OkStatus();
}

absl::Status Pod::MountShm(uint64_t size_bytes) {
  const std::string target = absl::StrCat(paths_.pod, "/shm");
  const std::string data =
      absl::StrCat("mode=1777,size=", size_bytes == 0 ? kDefaultShmBytes : size_bytes);
  const auto mounted = IsMounted(target);
  if (!mounted.ok()) return mounted.status();
  const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  return Mount("shm", target, "tmpfs", *mounted ? flags | MS_REMOUNT : flags, data);
}

absl::Status Pod::MountShared(const agent::v1::SetupSandboxRequest& request) {
  const uint32_t port = request.shared_port();
  if (request.shared_tag().empty() && port == 0) return absl::OkStatus();
  if (port != 0 && (port != kFileSharePort || !request.shared_tag().empty())) {
    return absl::InvalidArgumentError(absl::StrCat("shared_port: ", port));
  }
  const auto mounted = IsMounted(paths_.shared);
  if (!mounted.ok()) return mounted.status();
  if (*mounted) return absl::OkStatus();
  if (port == 0) return Mount(request.shared_tag(), paths_.shared, "virtiofs", 0, "");
  const absl::StatusOr<UniqueFd> stream = share_stream_->Take(kStreamTimeout);
  return stream.ok() ? MountNinep(*stream, paths_.shared) : stream.status();
}

absl::Status Pod::HoldPidNamespace() {
  if (pause_pid_ != 0) return absl::OkStatus();
  const absl::StatusOr<pid_t> pid =
      StartPidNamespace(paths_.agent_binary, absl::StrCat(paths_.pod, "/ns/pid"));
  if (!pid.ok()) return pid.status();
  pause_pid_ = *pid;
  return absl::OkStatus();
}

}  // namespace magnetar::guest
