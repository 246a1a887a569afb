#pragma once

#include <string>

#include "absl/status/status.h"
#include "vmm/vmm.h"

namespace magnetar::vmm {

// Adds vmm-9p to a VMM's plan, serving `directory`, and the stream by which the supervisor leads it
// into the guest: for every VMM, as it has no part in this. It runs as root, because it makes files
// for every uid of the guest's containers, but bounded to the capabilities that takes, and shuts
// itself in. FAILED_PRECONDITION: there is no such program.
absl::Status PlanNinep(const std::string& program, const std::string& directory, LaunchPlan& plan);

}  // namespace magnetar::vmm
