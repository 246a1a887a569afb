#include "src/daemon/choose_vmm.h"

#include <utility>

#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/guest_cid.h"
#include "vmm/qemu/driver.h"

namespace magnetar::daemon {

absl::StatusOr<ChosenVmm> ChooseVmm(const Config& config) {
  ChosenVmm chosen;
  vmm::qemu::Config qemu;
  qemu.program = config.vm.qemu_path;
  qemu.virtiofsd = config.vm.virtiofsd_path;
  if (config.vm.accel == "kvm") qemu.acceleration = vmm::Acceleration::kKvm;
  chosen.acceleration = qemu.acceleration == vmm::Acceleration::kKvm ? "kvm" : "tcg";
  chosen.driver = vmm::qemu::MakeDriver(std::move(qemu));
  if (config.vm.transport == "vsock" || (config.vm.transport == "auto" && KernelVsockWorks())) {
    chosen.transport = vmm::TransportKind::kKernelVsock;
  }
  return chosen;
}

}  // namespace magnetar::daemon
