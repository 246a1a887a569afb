#pragma once

#include <string>

#include "absl/status/status.h"
#include "magnetar/spec_json.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {

// The `mounts` of a spec: binds of the host become binds of what the host shares, the
// sandbox's own files become the guest's, the kernel's filesystems stay. Adds to the binds of
// `result`, and to what it dropped.
absl::Status RewriteMounts(Json& spec, const SpecRequest& request, RewrittenSpec& result);

// "/a//b/./c/" as "/a/b/c"; ".." is resolved as if nothing were a link. Absolute paths only.
std::string CleanPath(const std::string& path);

}  // namespace magnetar::daemon
