#pragma once

#include <string>
#include <vector>

#include "src/daemon/cgroup/layout.h"
#include "src/daemon/cgroup/sandbox_cgroup.h"

namespace magnetar::daemon {

struct LimitWrite {
  std::string controller;
  std::string file;
  std::string value;

  bool operator==(const LimitWrite&) const = default;
};

// What to write into a sandbox's cgroup of one hierarchy, in order. With `reset` a limit that
// is not set is lifted, else left alone.
std::vector<LimitWrite> LimitWrites(const Hierarchy& hierarchy, const SandboxLimits& limits,
                                    bool reset);

// v2's weight for v1's shares: 2..262144 onto 1..10000, as the OCI runtimes convert it.
uint64_t WeightOfShares(uint64_t shares);

}  // namespace magnetar::daemon
