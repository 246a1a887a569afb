#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/child_process.h"
#include "magnetar/unique_fd.h"

// The mount namespace of a sandbox's file server, in which all is mounted that the sandbox shares:
// nothing of it is in the host's. There a mount below a directory would keep its owner from
// removing it, and everything ends with the file server. Its root is the shared directory, with
// every FileShare (vmm/file_share.h).
namespace magnetar::daemon {

// NOT_FOUND: the process has ended. FAILED_PRECONDITION: it has no mount namespace of its own.
absl::StatusOr<UniqueFd> OpenMountNamespace(const ProcessIdentity& process);

// Makes the calling thread one with a working directory of its own, in the namespace, unless that
// is -1. Not for a thread that goes on to do something else.
absl::Status EnterMountNamespaceOnThread(int mount_namespace);

// Makes the calling thread one in a copy of its mount namespace that goes with it.
absl::Status LeaveMountNamespaceOnThread();

// The directory that a sandbox's file server exports, and where mounts are made in it: in the
// namespace of the file server, or, with none, here.
//
// The process and not its namespace: what is held while a path of the host keeps a thread waiting
// would hold all that is mounted there.
struct SharedPlace {
  std::string directory;
  std::optional<ProcessIdentity> file_server;
};

}  // namespace magnetar::daemon
