#pragma once

#include <prometheus/collectable.h>

#include <string>
#include <vector>

#include "src/daemon/sandbox/manager.h"

namespace magnetar::daemon {

// Sums over all sandboxes: how many there are, what they were given, what their processes on the
// host use. From records and /proc alone: no guest is asked, so none can keep it waiting. It
// reads two small files for each process.
class SandboxCollector : public prometheus::Collectable {
 public:
  // `proc`: in tests, a directory of plain files.
  explicit SandboxCollector(const SandboxManager* manager, std::string proc = "/proc")
      : manager_(manager), proc_(std::move(proc)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const SandboxManager* const manager_;
  const std::string proc_;
};

}  // namespace magnetar::daemon
