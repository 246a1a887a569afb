#pragma once

#include "containerd/types.pb.h"

namespace magnetar::shim {

// What this runtime can do, for `-info`: crun in the guest, seen from outside. Mounts are
// claimed by no annotation: containerd activates the types that need it.
containerd::types::RuntimeInfo BuildRuntimeInfo();

}  // namespace magnetar::shim
