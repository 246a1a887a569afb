#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "containerd/containers.pb.h"
#include "src/daemon/storage/requested_device.h"

namespace magnetar::daemon {

// CRI keeps a container's configuration with it, as JSON (internal/cri/store/container/metadata.go
// of containerd 2.1.9, the extension "io.cri-containerd.container.metadata"). A container that CRI
// has not made has none.

// The container whose processes this one is to see: namespace_options.target_id of one that was
// made with NamespaceMode TARGET (kubectl debug --target), else "". The spec has only a host's pid
// for it, and on the host every container of a sandbox has the VMM's. INVALID_ARGUMENT: its id is
// none.
absl::StatusOr<std::string> TargetContainer(
    const containerd::services::containers::v1::Container& container);

// The devices that the configuration names. The spec has more where a privileged container gets
// all of the host's, and does not say which.
std::vector<RequestedDevice> RequestedDevices(
    const containerd::services::containers::v1::Container& container);

// The limits of huge pages that are more than none. The spec has them only where the host's kernel
// has a controller for them.
std::vector<HugePageLimit> HugePageLimits(
    const containerd::services::containers::v1::Container& container);

}  // namespace magnetar::daemon
