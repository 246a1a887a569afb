#pragma once

#include "absl/status/status.h"

namespace magnetar::ninep {

// Refuses from here on, with EPERM, every system call but those of a table: files by descriptors
// and names, the stream that is there, and threads. Nothing in builds with sanitizers, whose
// libraries have needs of their own.
absl::Status FilterSyscalls();

}  // namespace magnetar::ninep
