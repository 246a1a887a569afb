#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace magnetar {

// Ids of sandboxes, containers and execs become file names, so they are held to
// containerd's own rule (pkg/identifiers/validate.go): alphanumerics joined by
// single '-', '_' or '.', at most 76 bytes. INVALID_ARGUMENT names `field`.
absl::Status ValidateId(std::string_view id, std::string_view field);

}  // namespace magnetar
