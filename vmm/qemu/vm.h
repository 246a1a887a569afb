#pragma once

#include <memory>
#include <string>

#include "vmm/vmm.h"

namespace magnetar::vmm::qemu {

// A running QEMU by its QMP socket. What is attached is QEMU's own knowledge, by
// names made from serials and NIC ids, so that any later daemon can detach it.
Co<absl::StatusOr<std::unique_ptr<Vm>>> AttachVm(std::string qmp_path);

}  // namespace magnetar::vmm::qemu
