#pragma once

#include <prometheus/collectable.h>

#include <string>
#include <vector>

namespace magnetar::daemon {

// The daemon's own process, by the names that every client library of Prometheus uses for it. What
// cannot be read is left out.
class ProcessCollector : public prometheus::Collectable {
 public:
  // `proc`: in tests, a directory of plain files.
  explicit ProcessCollector(std::string proc = "/proc") : proc_(std::move(proc)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string proc_;
};

}  // namespace magnetar::daemon
