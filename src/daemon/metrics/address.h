#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// A non-blocking socket that listens on metrics.address ("host:port", "unix:/path"), whose form the
// configuration has checked. A name of a host is looked up; its first address that can be bound
// counts. Errors name the address and tell why.
absl::StatusOr<UniqueFd> ListenForMetrics(const std::string& address);

}  // namespace magnetar::daemon
