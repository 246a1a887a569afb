#pragma once

#include <cstdint>
#include <memory>

#include "magnetar/co.h"
#include "vmm/qemu/qmp.h"
#include "vmm/vmm.h"

// Processors and memory of a running QEMU. Processors come through ACPI; memory by one virtio-mem
// device, which is plugged into kMemoryPort with the first that is added, and whose backend costs
// nothing until the guest takes it. What there is, is QEMU's own knowledge.
// Facts: QEMU 7.2 qapi/machine.json, docs/system/devices/virtio-mem (qapi's virtio-mem).
namespace magnetar::vmm::qemu {

Co<absl::StatusOr<Size>> QuerySize(std::shared_ptr<QmpClient> qmp);
Co<absl::Status> ResizeVm(std::shared_ptr<QmpClient> qmp, uint32_t vcpus, uint64_t memory_bytes);

}  // namespace magnetar::vmm::qemu
