#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"

namespace magnetar::vmm {

// Whether KVM runs a guest, found out by running one: it enters long mode as a kernel
// does, counts four million times, and reports. That takes milliseconds on
// hardware (also nested, and in an emulated machine). A KVM that has to emulate what stock
// kernels do (PVM on a machine without virtualization) starts the same guest, and
// then interprets it instruction by instruction: it does not finish in time.
//
// It opens the device as a VMM will: under an unprivileged uid, with the device's group unless
// that is root's, which no VMM is given.
//
// Runs in a forked child, which is killed after `limit`: a guest that hangs cannot
// be asked to stop. Safe in a process with threads.
// FAILED_PRECONDITION: what failed. Takes `limit` at most.
absl::Status CheckKvm(const std::string& device = "/dev/kvm",
                      std::chrono::milliseconds limit = std::chrono::milliseconds(500));

}  // namespace magnetar::vmm
