#pragma once

#include <string>

namespace magnetar::daemon {

// A device that a container's configuration asks for by name (Kubernetes: volumeDevices), in
// CRI's terms.
struct RequestedDevice {
  std::string host_path;
  std::string container_path;
  std::string permissions;  // of "rwm"
};

}  // namespace magnetar::daemon
