#pragma once

#include <memory>
#include <string>

#include "vmm/vmm.h"

namespace magnetar::vmm::qemu {

struct Config {
  std::string program = "/usr/bin/qemu-system-x86_64";
  // The file servers; which of them, a MachineSpec says.
  std::string virtiofsd = "/usr/lib/qemu/virtiofsd";
  Acceleration acceleration = Acceleration::kTcg;
  uint32_t tsc_khz = 0;    // of the host, for guests under TCG; 0: they calibrate it themselves
  bool vhost_net = false;  // /dev/vhost-net works
  // What QEMU opens under KVM; its group decides which group QEMU is given.
  std::string kvm_device = "/dev/kvm";
};

std::unique_ptr<Driver> MakeDriver(Config config);

}  // namespace magnetar::vmm::qemu
