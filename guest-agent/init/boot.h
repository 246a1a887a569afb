#pragma once

#include "absl/status/status.h"

namespace magnetar::guest {

// The two lives of PID 1.

// Whether this runs from the initrd: the root is a ramfs or tmpfs.
bool InInitrd();

// First life: loads what the root disk needs, mounts the root image (erofs on the
// disk with serial kRootSerial) and becomes kAgentBinary there. Returns only if
// it fails.
absl::Status SwitchToRootImage();

// Second life: /proc, /sys, /dev, /run, /tmp, cgroup2, the remaining modules, the limit of
// open files, and the agent's own directories and cgroups.
absl::Status PrepareRoot();

// Ends the VM at once (QEMU and the others run with "no reboot").
[[noreturn]] void EndMachine();

inline constexpr char kRootSerial[] = "magnetar-root";
inline constexpr char kAgentBinary[] = "/sbin/vmm-task";

}  // namespace magnetar::guest
