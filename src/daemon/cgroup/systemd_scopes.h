#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

struct sd_bus;

// Scopes: cgroups that systemd makes and then leaves to somebody else. Facts: systemd's
// org.freedesktop.systemd1(5) and "Control Group APIs and Delegation".
namespace magnetar::daemon {

class SystemdScopes {
 public:
  virtual ~SystemdScopes() = default;
  // Starts a delegated scope in `slice` around a process (systemd starts no empty one), and returns
  // once it is there. One by that name that a crash left is stopped first.
  virtual absl::Status Start(const std::string& scope, const std::string& slice, pid_t pid) = 0;
  // Ends what is inside and removes it; an unknown one is fine.
  virtual absl::Status Stop(const std::string& scope) = 0;
};

// Over D-Bus, a connection for each call; any thread. UNAVAILABLE if the bus cannot be
// reached. `open` is sd_bus_open_system but in tests.
std::unique_ptr<SystemdScopes> CreateSystemdScopes(int (*open)(sd_bus**) = nullptr);

}  // namespace magnetar::daemon
