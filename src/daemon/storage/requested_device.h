#pragma once

#include <cstdint>
#include <string>

namespace magnetar::daemon {

// A device that a container's configuration asks for by name (Kubernetes: volumeDevices), in
// CRI's terms.
struct RequestedDevice {
  std::string host_path;
  std::string container_path;
  std::string permissions;  // of "rwm"
};

// What a container may use of huge pages, in CRI's terms.
struct HugePageLimit {
  std::string page_size;  // "2MB"
  uint64_t bytes = 0;
};

}  // namespace magnetar::daemon
