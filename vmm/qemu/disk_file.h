#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::vmm::qemu {

// The block driver for what a descriptor refers to: "file" or "host_device".
// INVALID_ARGUMENT if it is neither a regular file nor a block device.
absl::StatusOr<std::string> BlockDriverOf(int fd);

// In bytes. What is on a disk, a partition table above all, depends on the logical one.
struct BlockSizes {
  unsigned logical = 512;
  unsigned physical = 512;
};

// A block device's own; a file's are the default.
absl::StatusOr<BlockSizes> BlockSizesOf(int fd);

// A copy of the descriptor with exactly the access that the disk is to have: QEMU
// takes no other from a descriptor set. INVALID_ARGUMENT: a writable disk from a descriptor
// that is not.
absl::StatusOr<UniqueFd> DescriptorFor(int fd, bool read_only);

// Names inside QEMU for a disk. INVALID_ARGUMENT if the serial is empty, longer than 20
// bytes (SCSI's limit for what a guest sees), or holds what QEMU's ids may not.
absl::StatusOr<std::string> DiskId(const std::string& serial);

}  // namespace magnetar::vmm::qemu
