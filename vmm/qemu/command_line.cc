#include "vmm/qemu/command_line.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "magnetar/ports.h"

namespace magnetar::vmm::qemu {
namespace {

// What a machine for containers has no use for; each costs firmware and kernel
// time. ACPI stays: hot-plugging through it takes 26 ms where native PCIe hot-plug takes 150.
constexpr char kMachine[] =
    "q35,sata=off,smbus=off,i8042=off,hpet=off,vmport=off,usb=off,graphics=off,smm=off";

// The code cache is memory of the host that no limit of the guest's bounds.
constexpr char kTcg[] = "tcg,thread=multi,tb-size=128";

// QEMU 7.2 emulates `rep movsb` one byte at a time. A processor that does not call it fast makes
// the kernel and libc copy by words: a pipe of 64 KiB blocks carried 200 MiB/s instead of 45.
constexpr char kTcgCpu[] = "max,-erms,-fsrm";

constexpr char kSandbox[] =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

// Quiet, and without the kernel's self-tests and probing of hardware that is not there.
constexpr char kKernelBase[] =
    "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check "
    "cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1";

// Under TCG each of these costs a tenth of the boot, and protects from attacks that emulated
// processors do not have, or sets up tracing that nobody can reach. Not under KVM.
// norandmaps: QEMU translates code anew for each address at which it finds it. With programs
// somewhere else every time they start, an exec into a container took three times as long, and each
// few dozen of them filled the code cache, which then is dropped whole.
constexpr char kKernelTcg[] =
    " mitigations=off nokaslr norandmaps rodata=off initcall_blacklist=tracer_init_tracefs,"
    "init_kprobe_trace,slab_sysfs_init,crypto_kdf108_init,load_system_certificate_list";

// Memory that comes is used at once, and as far as there is enough other memory for that, so that
// it can be given back. It may come above 4 GiB, for which the kernel would keep 64 MiB to bounce
// the transfers of devices that cannot reach there: none of these.
constexpr char kKernelMemory[] =
    " memhp_default_state=online memory_hotplug.online_policy=auto-movable swiotlb=noforce";

// One option and its value; an empty value stands alone.
using Options = std::vector<std::pair<std::string, std::string>>;

// virtio-mem takes no slot, but without one QEMU does not tell how much there may be.
bool HasMorePlace(const Machine& m) { return m.max_memory_mib > m.memory_mib; }

void AddTransport(const Machine& m, Options& out) {
  if (m.vsock.has_value()) {
    out.emplace_back("-device", absl::StrCat("vhost-vsock-pci,id=vsock0,guest-cid=", m.vsock->cid,
                                             ",vhostfd=", m.vsock->vhost_fd));
    return;
  }
  out.emplace_back("-chardev", absl::StrCat("socket,id=mux,fd=", m.mux_fd));
  // Emulated, QEMU's main loop would hear of each write by an eventfd: two threads of the host that
  // wait for each other. This way the processor hands it on itself.
  out.emplace_back("-device",
                   absl::StrCat("virtio-serial-pci,id=serial0,max_ports=2,disable-legacy=on",
                                m.acceleration == Acceleration::kTcg ? ",ioeventfd=off" : ""));
  out.emplace_back(
      "-device", absl::StrCat("virtserialport,bus=serial0.0,nr=1,chardev=mux,name=", kMuxPortName));
}

void AddPorts(const Machine& m, Options& out) {
  for (uint32_t i = 0; i < kNicPorts; ++i) {
    out.emplace_back("-device",
                     absl::StrCat("pcie-root-port,id=nicport", i, ",bus=pcie.0,chassis=", i + 1,
                                  ",addr=0x10.", i, i == 0 ? ",multifunction=on" : ""));
  }
  if (HasMorePlace(m)) {
    out.emplace_back("-device",
                     absl::StrCat("pcie-root-port,id=", kMemoryPort,
                                  ",bus=pcie.0,chassis=", kNicPorts + 1, ",addr=0x10.", kNicPorts));
  }
  for (const Machine::Nic& nic : m.nics) {
    out.emplace_back("-netdev",
                     absl::StrCat("tap,id=", nic.id, "-tap,fd=", nic.tap_fd,
                                  nic.vhost_fd >= 0 ? absl::StrCat(",vhostfd=", nic.vhost_fd)
                                                    : std::string(",vhost=off")));
    out.emplace_back("-device", absl::StrCat("virtio-net-pci,id=", nic.id, ",netdev=", nic.id,
                                             "-tap,bus=nicport", NicIndex(nic.id).value_or(0),
                                             ",mac=", nic.mac, ",host_mtu=", nic.mtu, ",romfile="));
  }
}

Options AllOptions(const Machine& m) {
  const bool kvm = m.acceleration == Acceleration::kKvm;
  const bool shared_memory = m.virtiofs_fd >= 0;
  Options out = {
      {"-name", absl::StrCat("guest=", m.sandbox_id)},
      {"-nodefaults", ""},
      {"-no-user-config", ""},
      {"-display", "none"},
      {"-no-reboot", ""},
      {"-sandbox", kSandbox},
      {"-machine", absl::StrCat(kMachine, shared_memory ? ",memory-backend=ram" : "")},
      {"-accel", kvm ? "kvm" : kTcg},
      {"-cpu", kvm ? "host" : kTcgCpu},
      {"-smp", absl::StrCat("cpus=", m.vcpus,
                            m.max_vcpus > m.vcpus ? absl::StrCat(",maxcpus=", m.max_vcpus) : "")},
      {"-m", absl::StrCat(
                 "size=", m.memory_mib, "M",
                 HasMorePlace(m) ? absl::StrCat(",slots=1,maxmem=", m.max_memory_mib, "M") : "")},
  };
  if (shared_memory) {
    out.emplace_back("-object",
                     absl::StrCat("memory-backend-memfd,id=ram,size=", m.memory_mib, "M,share=on"));
  }
  out.insert(
      out.end(),
      {
          {"-kernel", m.kernel},
          {"-initrd", m.initrd},
          {"-append", KernelCommandLine(m)},
          {"-chardev", "stdio,id=console,signal=off"},
          {"-serial", "chardev:console"},
          {"-chardev", absl::StrCat("socket,id=qmp,fd=", m.qmp_fd, ",server=on,wait=off")},
          {"-mon", "chardev=qmp,mode=control"},
          {"-object", "rng-builtin,id=rng"},
          {"-device", "virtio-rng-pci,rng=rng,disable-legacy=on"},
          {"-add-fd", absl::StrCat("fd=", m.image_fd, ",set=1,opaque=root")},
          {"-blockdev",
           "driver=raw,node-name=root,read-only=on,file.driver=file,"
           "file.filename=/dev/fdset/1,file.read-only=on"},
          {"-device", "virtio-blk-pci,id=root0,drive=root,serial=magnetar-root,disable-legacy=on"},
          {"-device", "virtio-scsi-pci,id=scsi0,disable-legacy=on"},
      });
  AddTransport(m, out);
  if (shared_memory) {
    out.emplace_back("-chardev", absl::StrCat("socket,id=shared,fd=", m.virtiofs_fd));
    out.emplace_back("-device", "vhost-user-fs-pci,id=shared0,chardev=shared,tag=shared");
  }
  AddPorts(m, out);
  return out;
}

}  // namespace

absl::StatusOr<uint32_t> NicIndex(const std::string& id) {
  uint32_t index = 0;
  if (id.size() != 4 || !absl::StartsWith(id, "nic") || !absl::SimpleAtoi(id.substr(3), &index) ||
      index >= kNicPorts) {
    return absl::InvalidArgumentError(
        absl::StrCat("NIC \"", id, "\": expected nic0 to nic", kNicPorts - 1));
  }
  return index;
}

std::string KernelCommandLine(const Machine& m) {
  std::string out = kKernelBase;
  if (m.acceleration == Acceleration::kTcg) {
    absl::StrAppend(&out, kKernelTcg);
    if (m.tsc_khz != 0) absl::StrAppend(&out, " tsc_early_khz=", m.tsc_khz);
  }
  if (m.vsock.has_value()) {
    absl::StrAppend(&out, " magnetar.transport=vsock magnetar.ready=", m.vsock->ready_port);
  } else {
    absl::StrAppend(&out, " magnetar.transport=mux");
  }
  if (HasMorePlace(m)) absl::StrAppend(&out, kKernelMemory);
  if (!m.extra_cmdline.empty()) absl::StrAppend(&out, " ", m.extra_cmdline);
  return out;
}

std::vector<std::string> CommandLine(const Machine& machine) {
  std::vector<std::string> argv = {machine.program};
  for (auto& [option, value] : AllOptions(machine)) {
    argv.push_back(option);
    if (!value.empty()) argv.push_back(value);
  }
  return argv;
}

}  // namespace magnetar::vmm::qemu
