#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "magnetar/child_process.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar {

// A socket that listens on `path`, mode 0600, close-on-exec. An old socket file
// there is replaced.
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path);

// Starts vmm-supervisor (its path: `program`) in a session of its own, with stderr
// shared. Descriptors in `launch` are this process's numbers; the supervisor gets
// copies under numbers of its own, and the caller keeps, or closes, its own.
// The two listeners must be closed by the caller afterwards: a copy kept open
// would let peers of a dead VM connect and wait.
absl::StatusOr<ChildProcess> StartSupervisor(const std::string& program,
                                             supervisor::v1::Launch launch);

}  // namespace magnetar
