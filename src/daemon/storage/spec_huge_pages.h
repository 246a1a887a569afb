#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/spec_json.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {

// Limits of huge pages in a spec's resources become pages that the guest is to have: added to those
// of `result`. Where containerd has left the limits out, since the host's kernel does not know
// them, those of the request are put in: the guest's does.
absl::Status RewriteHugePages(Json& resources, const SpecRequest& request, RewrittenSpec& result);

// Bytes of "2MB", "64KB", "1GB". INVALID_ARGUMENT.
absl::StatusOr<uint64_t> PageSizeBytes(const std::string& text);

}  // namespace magnetar::daemon
