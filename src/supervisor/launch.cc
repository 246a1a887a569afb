#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"
#include "src/supervisor/supervisor.h"

namespace magnetar::supervisor {
namespace {
constexpr size_t kMaxLaunchBytes = 1 << 20;
}

absl::StatusOr<v1::Launch> ReadLaunch(int fd) {
  UniqueFd owner(fd);
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, absl::StrCat("read the launch on descriptor ", fd));
    if (n == 0) break;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxLaunchBytes) return absl::InvalidArgumentError("launch: too large");
  }
  v1::Launch launch;
  if (!launch.ParseFromString(text)) return absl::InvalidArgumentError("launch does not parse");
  MAGNETAR_RETURN_IF_ERROR(ValidateLaunch(launch));
  return launch;
}

absl::Status ValidateLaunch(const v1::Launch& launch) {
  MAGNETAR_RETURN_IF_ERROR(ValidateId(launch.sandbox_id(), "launch.sandbox_id"));
  if (!absl::StartsWith(launch.directory(), "/")) {
    return absl::InvalidArgumentError("launch.directory: not an absolute path");
  }
  int vmms = 0;
  for (const v1::Process& p : launch.processes()) {
    vmms += p.vmm() ? 1 : 0;
    if (p.argv().empty() || !absl::StartsWith(p.argv(0), "/")) {
      return absl::InvalidArgumentError(
          absl::StrCat("launch.processes: ", p.name(), " has no absolute program"));
    }
    for (const v1::Descriptor& d : p.descriptors()) {
      if (d.source() <= 2 || d.target() < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("launch.processes: ", p.name(), " passes descriptor ", d.source()));
      }
    }
  }
  if (vmms != 1) {
    return absl::InvalidArgumentError(absl::StrCat("launch.processes: ", vmms, " VMMs"));
  }
  if (launch.control_listener_fd() <= 0) {
    return absl::InvalidArgumentError("launch.control_listener_fd: missing");
  }
  const v1::Transport& transport = launch.transport();
  if (!transport.has_native() && launch.vsock_listener_fd() <= 0) {
    return absl::InvalidArgumentError("launch.vsock_listener_fd: missing");
  }
  if (transport.has_mux() && transport.mux().fd() <= 0) {
    return absl::InvalidArgumentError("launch.transport.mux.fd: missing");
  }
  if (transport.has_kernel_vsock() &&
      (transport.kernel_vsock().ready_listener_fd() <= 0 || transport.kernel_vsock().cid() < 3)) {
    return absl::InvalidArgumentError("launch.transport.kernel_vsock: no guest CID or listener");
  }
  for (const v1::GuestStream& stream : launch.guest_streams()) {
    if (transport.has_native() || stream.fd() <= 2 || stream.port() == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("launch.guest_streams: port ", stream.port(), ", descriptor ", stream.fd()));
    }
  }
  return absl::OkStatus();
}

}  // namespace magnetar::supervisor
