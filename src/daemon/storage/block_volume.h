#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/storage/container_storage.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {

// Block devices of the host as disks of a VM (Kubernetes: volumeDevices). A device is one disk for
// all containers of a sandbox: the first one attaches it, each has a step of its own for its use,
// and the last one detaches it.

// Takes any disk away from the VM, if it is there; `source` is for the error.
Co<absl::Status> DetachDisk(SandboxStorage* sandbox, std::string serial, std::string source);

// How the guest finds it: at most 20 bytes, and the same for every container of a sandbox.
std::string BlockVolumeSerial(dev_t number, bool read_only);

// Opens it for a VM, as OpenDiskImage does. FAILED_PRECONDITION, too: it is not the device any more
// that it was when the container was made, or it has no contents. Blocks.
absl::StatusOr<UniqueFd> OpenBlockVolume(const BlockDevice& device);

// Attaches what is not attached yet, and adds the guest's part to `prepared`. An error names the
// device and leaves steps behind.
Co<absl::Status> AttachBlockVolumes(SandboxStorage* sandbox, std::string container_id,
                                    std::vector<BlockDevice> devices,
                                    agent::v1::PreparedContainer* prepared);

// Undoes a step of kVolumeDisk or kVolumeUse and removes it from the journal.
Co<absl::Status> ReleaseBlockVolume(SandboxStorage* sandbox, StorageStep step);

}  // namespace magnetar::daemon
