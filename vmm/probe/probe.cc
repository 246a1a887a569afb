#include "vmm/probe/probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/child_process.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"
#include "vmm/probe/kvm.h"
#include "vmm/probe/tsc.h"

namespace magnetar::vmm {
namespace {

constexpr std::chrono::seconds kVersionDeadline{10};
constexpr size_t kMaxOutputBytes = 4096;

bool Opens(const std::string& device) {
  return UniqueFd(::open(device.c_str(), O_RDWR | O_CLOEXEC)).ok();
}

// The beginning of what a program prints, within the deadline.
absl::StatusOr<std::string> Output(const std::vector<std::string>& argv) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd read_end(fds[0]);
  UniqueFd write_end(fds[1]);
  SpawnOptions options;
  options.argv = argv;
  options.descriptors = {{.source = write_end.get(), .target = STDOUT_FILENO}};
  auto child = Spawn(options);
  if (!child.ok()) return child.status();
  write_end.reset();
  const auto deadline = std::chrono::steady_clock::now() + kVersionDeadline;
  std::string output;
  while (output.size() < kMaxOutputBytes) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd polled{.fd = read_end.get(), .events = POLLIN, .revents = 0};
    if (left.count() <= 0 || ::poll(&polled, 1, static_cast<int>(left.count())) <= 0) break;
    char buffer[512];
    const ssize_t n = ::read(read_end.get(), buffer, sizeof(buffer));
    if (n <= 0) break;
    output.append(buffer, static_cast<size_t>(n));
  }
  MAGNETAR_RETURN_IF_ERROR(child->Signal(SIGKILL));
  if (auto exit = child->WaitBlocking(); !exit.ok()) return exit.status();
  return output;
}

void ProbeQemu(const ProbeOptions& options, Host& host) {
  host.qemu = absl::NotFoundError("no QEMU is installed");
  for (const std::string& path : options.qemu) {
    if (::access(path.c_str(), X_OK) != 0) continue;
    auto output = Output({path, "--version"});
    if (!output.ok()) {
      host.qemu = output.status();
      continue;
    }
    auto version = ParseQemuVersion(*output);
    if (!version.ok()) {
      host.qemu = Annotate(version.status(), path);
      continue;
    }
    host.qemu = absl::OkStatus();
    host.qemu_path = path;
    host.qemu_version = *std::move(version);
    return;
  }
}

}  // namespace

absl::StatusOr<std::string> ParseQemuVersion(const std::string& output) {
  constexpr char kPrefix[] = "QEMU emulator version ";
  if (!absl::StartsWith(output, kPrefix)) {
    return absl::InvalidArgumentError("does not tell a QEMU version");
  }
  const size_t begin = sizeof(kPrefix) - 1;
  const size_t end = output.find_first_not_of("0123456789.", begin);
  std::string version = output.substr(begin, end == std::string::npos ? end : end - begin);
  if (version.empty()) return absl::InvalidArgumentError("does not tell a QEMU version");
  return version;
}

Host ProbeHost(const ProbeOptions& options) {
  Host host;
  host.kvm = CheckKvm(options.kvm);
  host.tsc_khz = MeasureTscKhz();
  host.vhost_vsock = Opens(options.vhost_vsock);
  host.vhost_net = Opens(options.vhost_net);
  ProbeQemu(options, host);
  for (const std::string& path : options.virtiofsd) {
    if (::access(path.c_str(), X_OK) != 0) continue;
    host.virtiofsd_path = path;
    break;
  }
  return host;
}

}  // namespace magnetar::vmm
