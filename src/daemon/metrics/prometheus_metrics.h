#pragma once

#include <memory>
#include <string>

#include "src/daemon/metrics/metrics.h"

namespace prometheus {
class Collectable;
}  // namespace prometheus

namespace magnetar::daemon {

// What is told once, about this daemon.
struct DaemonInfo {
  std::string version;
  std::string vmm;           // "qemu"
  std::string acceleration;  // "kvm", "tcg"
};

// Metrics as Prometheus reads them, with whatever else counts itself when it is asked. Any thread.
// Label values come from fixed sets: how many series there are does not depend on the pods.
class PrometheusMetrics : public DaemonMetrics {
 public:
  static std::unique_ptr<PrometheusMetrics> Create(const DaemonInfo& info);

  // Read with the others from now on. Before the first Text.
  virtual void Add(std::shared_ptr<const prometheus::Collectable> source) = 0;
  // Everything in the text exposition format 0.0.4. Takes as long as what was added does.
  virtual std::string Text() const = 0;
};

}  // namespace magnetar::daemon
