#include "vmm/qemu/driver.h"

#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "magnetar/supervisor_launch.h"
#include "vmm/qemu/command_line.h"
#include "vmm/qemu/virtiofsd.h"
#include "vmm/qemu/vm.h"

namespace magnetar::vmm::qemu {
namespace {

constexpr Capabilities kCapabilities = {
    .shared_memory_fs = true,
    .hotplug_disk = true,
    .hotplug_nic = true,
    .resize_cpus = true,
    .resize_memory = true,
    .pause = true,
};

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kMinMemoryMiB = 64;
// Where the descriptors of the QEMU process begin.
constexpr int kFirstTarget = 10;

std::string VmmDirectory(const std::string& directory) { return absl::StrCat(directory, "/vmm"); }
// Not in the VMM's own directory: there a VMM that has been taken over could put a link in its
// place, and the daemon, root, would send it to another VM's socket. QEMU needs no path, it
// inherits the socket.
std::string QmpPath(const std::string& directory) { return absl::StrCat(directory, "/qmp.sock"); }

absl::StatusOr<UniqueFd> Open(const std::string& path, int flags, const char* what) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (fd.ok()) return fd;
  return absl::FailedPreconditionError(absl::StrCat(what, " ", path, ": ", ::strerror(errno)));
}

// A file that QEMU opens again through its descriptor, as `uid`, which its mode must allow.
absl::StatusOr<UniqueFd> OpenFor(const MachineSpec& spec, const std::string& path,
                                 const char* what) {
  auto fd = Open(path, O_RDONLY, what);
  struct stat st;
  if (!fd.ok() || spec.uid == 0 || ::fstat(fd->get(), &st) != 0) return fd;
  const bool readable = (st.st_mode & S_IROTH) != 0 ||
                        ((st.st_mode & S_IRGRP) != 0 && st.st_gid == spec.gid) ||
                        ((st.st_mode & S_IRUSR) != 0 && st.st_uid == spec.uid);
  if (readable) return fd;
  return absl::FailedPreconditionError(
      absl::StrCat(what, " ", path, ": not readable for the VMM's user ", spec.uid));
}

absl::Status CheckProgram(const std::string& path, const char* what) {
  if (::access(path.c_str(), X_OK) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(what, " ", path, ": ", ::strerror(errno)));
}

// Collects what the QEMU process inherits.
class Inherited {
 public:
  Inherited(supervisor::v1::Process& process, std::vector<UniqueFd>& owned)
      : process_(process), owned_(owned) {}

  // Returns the number in the process.
  int Add(int borrowed) {
    supervisor::v1::Descriptor& d = *process_.add_descriptors();
    d.set_source(borrowed);
    d.set_target(next_);
    return next_++;
  }
  int Add(UniqueFd fd) {
    owned_.push_back(std::move(fd));
    return Add(owned_.back().get());
  }

 private:
  supervisor::v1::Process& process_;
  std::vector<UniqueFd>& owned_;
  int next_ = kFirstTarget;
};

// A descriptor as a path. QEMU opens kernel and initrd by name, and its user need
// not be able to walk to them; the file's own mode is checked all the same.
std::string FdPath(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.ok()) return ErrnoStatus(errno, "socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // ListenUnix has checked the length.
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("connect to ", path));
  }
  return fd;
}

// Listens on any free port, and says which.
absl::StatusOr<std::pair<UniqueFd, uint32_t>> ListenVsock() {
  UniqueFd fd(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = VMADDR_PORT_ANY;
  socklen_t length = sizeof(address);
  if (!fd.ok() || ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, "listen for the guest's vsock knock");
  }
  return std::make_pair(std::move(fd), uint32_t{address.svm_port});
}

absl::Status Validate(const MachineSpec& spec) {
  MAGNETAR_RETURN_IF_ERROR(ValidateId(spec.sandbox_id, "sandbox id"));
  if (spec.clone.has_value() || !spec.memory_file.empty()) {
    return absl::UnimplementedError("QEMU: templates and clones");
  }
  if (spec.vcpus == 0) return absl::InvalidArgumentError("a machine needs a vCPU");
  if (spec.memory_bytes < kMinMemoryMiB * kMiB) {
    return absl::InvalidArgumentError(absl::StrCat(
        "memory of ", spec.memory_bytes, " bytes: a machine needs ", kMinMemoryMiB, " MiB"));
  }
  if (spec.transport == TransportKind::kNative) {
    return absl::InvalidArgumentError("QEMU has no hybrid vsock of its own");
  }
  if (spec.transport == TransportKind::kKernelVsock && spec.guest_cid < 3) {
    return absl::InvalidArgumentError(absl::StrCat("guest CID ", spec.guest_cid));
  }
  for (const NicSpec& nic : spec.nics) {
    if (auto index = NicIndex(nic.id); !index.ok()) return index.status();
  }
  return absl::OkStatus();
}

class QemuDriver : public Driver {
 public:
  explicit QemuDriver(Config config) : config_(std::move(config)) {}

  std::string_view name() const override { return "qemu"; }
  const Capabilities& capabilities() const override { return kCapabilities; }

  absl::StatusOr<LaunchPlan> Plan(const MachineSpec& spec) const override {
    MAGNETAR_RETURN_IF_ERROR(Validate(spec));
    MAGNETAR_RETURN_IF_ERROR(CheckProgram(config_.program, "QEMU"));
    MAGNETAR_RETURN_IF_ERROR(PrepareDirectory(spec));

    LaunchPlan plan;
    supervisor::v1::Process process;
    Inherited inherited(process, plan.descriptors);
    Machine machine;
    machine.program = config_.program;
    machine.sandbox_id = spec.sandbox_id;
    machine.acceleration = config_.acceleration;
    machine.tsc_khz = config_.tsc_khz;
    machine.vcpus = spec.vcpus;
    machine.max_vcpus = spec.max_vcpus;
    machine.memory_mib = (spec.memory_bytes + kMiB - 1) / kMiB;
    machine.max_memory_mib = spec.max_memory_bytes / kMiB;
    machine.extra_cmdline = spec.extra_cmdline;

    auto kernel = OpenFor(spec, spec.kernel_path, "kernel");
    if (!kernel.ok()) return kernel.status();
    machine.kernel = FdPath(inherited.Add(*std::move(kernel)));
    auto initrd = OpenFor(spec, spec.initrd_path, "initrd");
    if (!initrd.ok()) return initrd.status();
    machine.initrd = FdPath(inherited.Add(*std::move(initrd)));
    auto image = Open(spec.image_path, O_RDONLY, "root image");
    if (!image.ok()) return image.status();
    machine.image_fd = inherited.Add(*std::move(image));
    auto qmp = ListenUnix(QmpPath(spec.directory));
    if (!qmp.ok()) return qmp.status();
    machine.qmp_fd = inherited.Add(*std::move(qmp));

    MAGNETAR_RETURN_IF_ERROR(PlanTransport(spec, machine, inherited, plan));
    MAGNETAR_RETURN_IF_ERROR(PlanSharing(spec, machine, inherited, plan));
    MAGNETAR_RETURN_IF_ERROR(PlanNics(spec, machine, inherited));

    process.set_name("qemu");
    process.set_vmm(true);
    process.set_uid(spec.uid);
    process.set_gid(spec.gid);
    MAGNETAR_RETURN_IF_ERROR(PlanGroups(process));
    for (std::string& argument : CommandLine(machine)) process.add_argv(std::move(argument));
    plan.processes.push_back(std::move(process));
    return plan;
  }

  Co<absl::StatusOr<std::unique_ptr<Vm>>> Attach(std::string directory) const override {
    return AttachVm(QmpPath(directory), {.vhost_net = config_.vhost_net});
  }

 private:
  static absl::Status PrepareDirectory(const MachineSpec& spec) {
    const std::string directory = VmmDirectory(spec.directory);
    MAGNETAR_RETURN_IF_ERROR(MakeDirectories(directory));
    if (::chown(directory.c_str(), spec.uid, spec.gid) != 0) {
      return ErrnoStatus(errno, absl::StrCat("chown ", directory));
    }
    return absl::OkStatus();
  }

  static absl::Status PlanTransport(const MachineSpec& spec, Machine& machine, Inherited& inherited,
                                    LaunchPlan& plan) {
    if (spec.transport == TransportKind::kKernelVsock) {
      auto device = Open("/dev/vhost-vsock", O_RDWR, "vhost-vsock");
      if (!device.ok()) return device.status();
      auto listener = ListenVsock();
      if (!listener.ok()) return listener.status();
      machine.vsock = Machine::Vsock{.cid = spec.guest_cid,
                                     .vhost_fd = inherited.Add(*std::move(device)),
                                     .ready_port = listener->second};
      auto& vsock = *plan.transport.mutable_kernel_vsock();
      vsock.set_cid(spec.guest_cid);
      vsock.set_ready_listener_fd(listener->first.get());
      plan.descriptors.push_back(std::move(listener->first));
      return absl::OkStatus();
    }
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return ErrnoStatus(errno, "socketpair for the guest's port");
    }
    UniqueFd ours(ends[0]);
    machine.mux_fd = inherited.Add(UniqueFd(ends[1]));
    plan.transport.mutable_mux()->set_fd(ours.get());
    plan.descriptors.push_back(std::move(ours));
    return absl::OkStatus();
  }

  absl::Status PlanSharing(const MachineSpec& spec, Machine& machine, Inherited& inherited,
                           LaunchPlan& plan) const {
    if (spec.shared_directory.empty()) return absl::OkStatus();
    MAGNETAR_RETURN_IF_ERROR(CheckProgram(config_.virtiofsd, "virtiofsd"));
    const std::string path = absl::StrCat(VmmDirectory(spec.directory), "/virtiofs.sock");
    auto listener = ListenUnix(path);
    if (!listener.ok()) return listener.status();
    // The one connection is made here and waits in the backlog, so that neither
    // process has to wait for the other, and nobody else can make it.
    auto connection = ConnectUnix(path);
    if (!connection.ok()) return connection.status();
    MAGNETAR_RETURN_IF_ERROR(RemoveFile(path));
    machine.virtiofs_fd = inherited.Add(*std::move(connection));
    plan.processes.push_back(
        VirtiofsdProcess(config_.virtiofsd, spec.shared_directory, listener->get()));
    plan.descriptors.push_back(*std::move(listener));
    return absl::OkStatus();
  }

  absl::Status PlanNics(const MachineSpec& spec, Machine& machine, Inherited& inherited) const {
    for (const NicSpec& nic : spec.nics) {
      Machine::Nic out{.id = nic.id, .mac = nic.mac, .mtu = nic.mtu};
      out.tap_fd = inherited.Add(nic.tap_fd);
      if (config_.vhost_net) {
        auto device = Open("/dev/vhost-net", O_RDWR, "vhost-net");
        if (!device.ok()) return device.status();
        out.vhost_fd = inherited.Add(*std::move(device));
      }
      machine.nics.push_back(std::move(out));
    }
    return absl::OkStatus();
  }

  // QEMU opens /dev/kvm by itself. Root's group is never given: sockets are open to it that mean
  // root's power, containerd's for one. CheckKvm has seen that it takes no more than this.
  absl::Status PlanGroups(supervisor::v1::Process& process) const {
    if (config_.acceleration != Acceleration::kKvm || process.uid() == 0) return absl::OkStatus();
    struct stat st;
    if (::stat(config_.kvm_device.c_str(), &st) != 0) return ErrnoStatus(errno, config_.kvm_device);
    if (st.st_gid != 0) process.add_supplementary_gids(st.st_gid);
    return absl::OkStatus();
  }

  Config config_;
};

}  // namespace

std::unique_ptr<Driver> MakeDriver(Config config) {
  return std::make_unique<QemuDriver>(std::move(config));
}

}  // namespace magnetar::vmm::qemu
