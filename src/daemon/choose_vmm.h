#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "src/daemon/config/config.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

struct ChosenVmm {
  std::unique_ptr<vmm::Driver> driver;
  vmm::TransportKind transport = vmm::TransportKind::kMux;
  std::string acceleration;  // "kvm", "tcg"; for the log
};

// The best VMM that this host has, within what the configuration allows. Blocks for as
// long as it takes to see whether a guest truly runs under KVM.
absl::StatusOr<ChosenVmm> ChooseVmm(const Config& config);

}  // namespace magnetar::daemon
