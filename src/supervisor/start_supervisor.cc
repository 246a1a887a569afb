#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/supervisor_launch.h"
#include "src/supervisor/supervisor.h"

namespace magnetar {
namespace {

// Gives each descriptor of this process a number in the supervisor, densely.
class Renumbering {
 public:
  int32_t operator()(int32_t fd) {
    if (fd <= 0) return fd;
    const auto [it, added] = numbers_.try_emplace(fd, next_);
    if (added) ++next_;
    return it->second;
  }

  std::vector<FdMapping> Mappings() const {
    std::vector<FdMapping> out;
    out.reserve(numbers_.size());
    for (const auto& [source, target] : numbers_) out.push_back({source, target});
    return out;
  }

 private:
  std::map<int, int> numbers_;
  int next_ = supervisor::kLaunchFd + 1;
};

void Renumber(supervisor::v1::Launch& launch, Renumbering& number) {
  launch.set_forward_listener_fd(number(launch.forward_listener_fd()));
  launch.set_control_listener_fd(number(launch.control_listener_fd()));
  launch.set_vsock_listener_fd(number(launch.vsock_listener_fd()));
  for (supervisor::v1::Process& process : *launch.mutable_processes()) {
    process.set_netns_fd(number(process.netns_fd()));
    for (int32_t& fd : *process.mutable_cgroup_procs_fds()) fd = number(fd);
    for (supervisor::v1::Descriptor& d : *process.mutable_descriptors()) {
      d.set_source(number(d.source()));
    }
  }
  for (supervisor::v1::GuestStream& s : *launch.mutable_guest_streams()) s.set_fd(number(s.fd()));
  supervisor::v1::Transport& transport = *launch.mutable_transport();
  if (transport.has_mux()) transport.mutable_mux()->set_fd(number(transport.mux().fd()));
  if (transport.has_kernel_vsock()) {
    auto& vsock = *transport.mutable_kernel_vsock();
    vsock.set_ready_listener_fd(number(vsock.ready_listener_fd()));
  }
}

absl::StatusOr<UniqueFd> SealedFile(const std::string& contents) {
  UniqueFd fd(::memfd_create("launch", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.ok()) return ErrnoStatus(errno, "memfd_create");
  if (::write(fd.get(), contents.data(), contents.size()) !=
          static_cast<ssize_t>(contents.size()) ||
      ::lseek(fd.get(), 0, SEEK_SET) != 0 ||
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
          0) {
    return ErrnoStatus(errno, "write the launch");
  }
  return fd;
}

}  // namespace

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": longer than a socket's path may be, ", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.ok()) return ErrnoStatus(errno, "socket");
  MAGNETAR_RETURN_IF_ERROR(RemoveFile(path));
  // On Linux the mode of an AF_UNIX socket descriptor becomes the file's.
  if (::fchmod(fd.get(), 0600) != 0 ||
      ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    return ErrnoStatus(errno, absl::StrCat("listen on ", path));
  }
  return fd;
}

absl::StatusOr<ChildProcess> StartSupervisor(const std::string& program,
                                             supervisor::v1::Launch launch) {
  Renumbering number;
  Renumber(launch, number);
  MAGNETAR_RETURN_IF_ERROR(supervisor::ValidateLaunch(launch));
  auto file = SealedFile(launch.SerializeAsString());
  if (!file.ok()) return file.status();
  SpawnOptions options;
  // The id is for whoever reads a list of processes.
  options.argv = {program, launch.sandbox_id()};
  options.new_session = true;
  options.descriptors = number.Mappings();
  options.descriptors.push_back({.source = file->get(), .target = supervisor::kLaunchFd});
  options.descriptors.push_back({.source = STDERR_FILENO, .target = STDERR_FILENO});
  return Spawn(options);
}

}  // namespace magnetar
