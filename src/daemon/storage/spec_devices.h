#pragma once

#include "absl/status/status.h"
#include "magnetar/spec_json.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {

// The `devices` of a spec's linux section, and the rules for block devices in its resources.
// Block devices that the container asked for are added to those of `result`; the guest fills in
// their numbers and their rules. Of all others only what every Linux has may stay.
absl::Status RewriteDevices(Json& linux_section, const SpecRequest& request, RewrittenSpec& result);

}  // namespace magnetar::daemon
