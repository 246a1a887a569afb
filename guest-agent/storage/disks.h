#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// Disks are found by the serial that the host gave them, never by their name.
// Facts: Linux 6.1 drivers/block/virtio_blk.c (/sys/block/*/serial) and
// drivers/scsi/scsi_sysfs.c (/sys/block/*/device/vpd_pg80, SPC-4 unit serial number page).

// Hotplug takes milliseconds; a disk that is not there by then will not come.
inline constexpr std::chrono::seconds kDiskTimeout{10};

// "/dev/vdb" of the disk with this serial; nullopt if there is none now.
std::optional<std::string> FindDisk(const std::string& serial,
                                    const std::string& sys_block = "/sys/block",
                                    const std::string& dev = "/dev");

// The serial in a VPD page 0x80, without its padding; empty if it is none.
std::string SerialOfVpdPage80(const std::string& page);

// Kernel's announcements of devices. Open one before looking for a device that
// may be on its way.
class Uevents {
 public:
  static absl::StatusOr<Uevents> Open();
  // Blocks until something was announced; false at `deadline`.
  bool Wait(std::chrono::steady_clock::time_point deadline);

 private:
  explicit Uevents(UniqueFd socket) : socket_(std::move(socket)) {}
  UniqueFd socket_;
};

// The disk with this serial, waiting for it to appear. Blocks. DEADLINE_EXCEEDED.
absl::StatusOr<std::string> WaitForDisk(const std::string& serial,
                                        std::chrono::nanoseconds timeout);

}  // namespace magnetar::guest
