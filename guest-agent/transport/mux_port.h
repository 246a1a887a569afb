#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// Opens the virtio-serial port named kMuxPortName, waiting for it to appear.
// Blocks. Facts: Linux 6.1 drivers/char/virtio_console.c (name attribute).
absl::StatusOr<UniqueFd> OpenMuxPort();

// "/dev/vport2p1" of the port with this name; NOT_FOUND.
absl::StatusOr<std::string> FindVirtioPort(const std::string& name,
                                           const std::string& sys = "/sys/class/virtio-ports",
                                           const std::string& dev = "/dev");

}  // namespace magnetar::guest
