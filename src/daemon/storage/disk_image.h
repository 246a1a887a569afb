#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// How a guest finds a container's disk: at most 20 bytes (virtio-blk's limit), made of the
// container's id, the same in every daemon.
std::string DiskSerial(const std::string& container_id);

// Opens an image file or a block device for a VM, so that no one else writes to it meanwhile.
// The descriptor claims it for as long as it, or a duplicate in another process, is open:
// block devices by O_EXCL, which excludes mounts too; files by a lock of the open file
// description, shared if `read_only`.
// FAILED_PRECONDITION: it is missing, backs a loop device, is mounted or attached elsewhere
// (all but the first only unless read_only). INVALID_ARGUMENT: neither file nor block device.
// Blocks. `sys_block` is a parameter for tests.
absl::StatusOr<UniqueFd> OpenDiskImage(const std::string& path, bool read_only,
                                       const std::string& sys_block = "/sys/block");

}  // namespace magnetar::daemon
