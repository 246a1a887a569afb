#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "containerd/containers.pb.h"

namespace magnetar::daemon {

// The container whose processes this one is to see: namespace_options.target_id of one that was
// made with NamespaceMode TARGET (kubectl debug --target), else "". The spec has only a host's pid
// for it, and on the host every container of a sandbox has the VMM's. INVALID_ARGUMENT: its id is
// none.
//
// CRI keeps a container's configuration with it, as JSON (internal/cri/store/container/metadata.go
// of containerd 2.1.9, the extension "io.cri-containerd.container.metadata").
absl::StatusOr<std::string> TargetContainer(
    const containerd::services::containers::v1::Container& container);

}  // namespace magnetar::daemon
