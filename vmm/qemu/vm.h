#pragma once

#include <memory>
#include <string>

#include "vmm/vmm.h"

namespace magnetar::vmm::qemu {

struct VmOptions {
  bool vhost_net = false;  // for NICs that are added
};

// A running QEMU by its QMP socket. What is attached is QEMU's own knowledge, by
// names made from serials and NIC ids, so that any later daemon can detach it.
Co<absl::StatusOr<std::unique_ptr<Vm>>> AttachVm(std::string qmp_path, VmOptions options);

}  // namespace magnetar::vmm::qemu
