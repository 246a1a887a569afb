#pragma once

#include <cstdint>
#include <string>

#include "guest-agent/transport/transport.h"

namespace magnetar::guest {

// What the host tells the agent on the kernel's command line:
//   magnetar.transport=mux|vsock   magnetar.ready=<port>   magnetar.log=debug|info|warn
// Unknown keys belong to others and are passed over.
struct BootOptions {
  TransportOptions transport;
  std::string log_level = "info";
};

BootOptions ParseKernelCommandLine(const std::string& line);

}  // namespace magnetar::guest
