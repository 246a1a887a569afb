#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cgroups/v2_metrics.pb.h"
#include "src/daemon/cgroup/layout.h"

// Counters of a cgroup from its files. What a kernel or hierarchy does not have stays zero; no
// limit is UINT64_MAX, as containerd's own metrics have it.
namespace magnetar::daemon {

// One v2 directory, of the controllers that are v2's (AssignControllers).
void ReadMetricsV2(const Hierarchy& hierarchy, const std::string& directory,
                   io::containerd::cgroups::v2::Metrics& out);

// One v1 directory of a hierarchy with these controllers.
void ReadMetricsV1(const Hierarchy& hierarchy, const std::string& directory,
                   io::containerd::cgroups::v2::Metrics& out);

// Pieces that both share.

// A file with one number, or "max"; `otherwise` if it is absent or holds something else.
uint64_t ReadNumber(const std::string& path, uint64_t otherwise = 0);

// Calls `set(key, value)` for each line "key value" of a file; an absent one has none.
void ForEachKey(const std::string& path,
                void (*set)(absl::string_view key, uint64_t value,
                            io::containerd::cgroups::v2::Metrics& out),
                io::containerd::cgroups::v2::Metrics& out);

}  // namespace magnetar::daemon
