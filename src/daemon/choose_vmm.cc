#include "src/daemon/choose_vmm.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "vmm/probe/probe.h"
#include "vmm/qemu/driver.h"

namespace magnetar::daemon {

absl::StatusOr<ChosenVmm> ChooseVmm(const Config& config) {
  vmm::ProbeOptions options;
  options.qemu = {config.vm.qemu_path};
  options.virtiofsd = {config.vm.virtiofsd_path};
  const vmm::Host host = vmm::ProbeHost(options);
  // One that was asked for by name must be there, as the acceleration below.
  if (config.vm.vmm == "qemu" && !host.qemu.ok()) return Annotate(host.qemu, "vm.vmm is qemu");
  // Else what is missing may be installed later: each Start says it again, by path.
  if (!host.qemu.ok()) Log(LogLevel::kError, "no VMM", {{"error", host.qemu.ToString()}});

  vmm::qemu::Config qemu;
  qemu.program = config.vm.qemu_path;
  qemu.virtiofsd = config.vm.virtiofsd_path;
  qemu.vhost_net = host.vhost_net;
  qemu.tsc_khz = host.tsc_khz;
  if (config.vm.accel == "kvm" && !host.kvm.ok()) return Annotate(host.kvm, "vm.accel is kvm");
  const bool kvm = config.vm.accel != "tcg" && host.kvm.ok();
  if (!kvm && config.vm.accel == "auto") {
    Log(LogLevel::kInfo, "guests run without KVM", {{"reason", host.kvm.ToString()}});
  }
  if (kvm) qemu.acceleration = vmm::Acceleration::kKvm;

  if (config.vm.transport == "vsock" && !host.vhost_vsock) {
    return absl::FailedPreconditionError("vm.transport is vsock: /dev/vhost-vsock does not work");
  }
  ChosenVmm chosen;
  chosen.driver = vmm::qemu::MakeDriver(std::move(qemu));
  chosen.acceleration = kvm ? "kvm" : "tcg";
  const bool vsock = config.vm.transport != "mux" && host.vhost_vsock;
  chosen.transport = vsock ? vmm::TransportKind::kKernelVsock : vmm::TransportKind::kMux;
  return chosen;
}

}  // namespace magnetar::daemon
