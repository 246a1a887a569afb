#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar {

// Connects to a unix socket, without waiting. NOT_FOUND: nobody listens; RESOURCE_EXHAUSTED: it
// does not take the connection now; INVALID_ARGUMENT: the path is too long.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path);

// Makes room for a socket: removes one that nobody serves, and absence is fine.
// FAILED_PRECONDITION if somebody serves it, or if it is something else than a socket.
absl::Status ClearSocketPath(const std::string& path);

}  // namespace magnetar
