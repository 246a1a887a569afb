#pragma once

#include <optional>
#include <string>

namespace magnetar::supervisor {

// The number of "CAP_CHOWN" and its like (capabilities(7)). A table of our own, because
// libcap-ng's brings name services, and with them a third of a static C library, along.
std::optional<int> CapabilityNumber(const std::string& name);

}  // namespace magnetar::supervisor
