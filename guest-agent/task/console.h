#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// The socket at which an OCI runtime delivers the master of a terminal, as one
// SCM_RIGHTS message (runc's docs/terminals.md, "detached new terminal").
absl::StatusOr<UniqueFd> ListenForConsole(const std::string& path);

// Takes the master from a runtime that has already ended: never blocks.
absl::StatusOr<UniqueFd> ReceiveConsole(int listener);

absl::Status ResizeConsole(int master, uint32_t columns, uint32_t rows);

}  // namespace magnetar::guest
