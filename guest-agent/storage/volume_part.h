#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// A part of a volume, by an O_PATH descriptor: what the pod has there, or else made as the
// host says. Links that containers have put on the way are followed within their own directory,
// and lead nowhere else. One at a time for a volume. Blocks. INVALID_ARGUMENT: nonsense;
// FAILED_PRECONDITION: something else is in the way.
absl::StatusOr<UniqueFd> OpenVolumePart(const agent::v1::Storage& storage);

// Binds it, file or directory, to `target`, which it makes. Blocks.
absl::Status BindVolumePart(int part, const std::string& target);

}  // namespace magnetar::guest
