#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar {

// Dials a guest's port through its hybrid vsock socket: connect, send
// "CONNECT <port>\n", read a line that begins with "OK" (protocol of Firecracker
// and cloud-hypervisor, and the form in which containerd dials: pkg/shim/util_unix.go
// of 2.1.9). UNAVAILABLE: nothing listens at the path or at the port.
// DEADLINE_EXCEEDED: no line within `timeout`. Runs on the caller's executor. The descriptor
// is non-blocking.
Co<absl::StatusOr<UniqueFd>> DialHybridVsock(std::string path, uint32_t port,
                                             std::chrono::nanoseconds timeout);

}  // namespace magnetar
