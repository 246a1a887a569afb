#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "src/supervisor/async_fd.h"

// The first line of a hybrid vsock connection, "CONNECT <port>\n" (Firecracker's
// protocol, docs/vsock.md there).
namespace magnetar::supervisor {

inline constexpr size_t kMaxConnectLineBytes = 32;

// `line` without its newline. INVALID_ARGUMENT: not this protocol.
absl::StatusOr<uint32_t> ParseConnectLine(std::string_view line);

// Reads the line and not one byte more: what follows belongs to the guest.
Co<absl::StatusOr<uint32_t>> ReadConnectLine(AsyncFd& socket);

}  // namespace magnetar::supervisor
