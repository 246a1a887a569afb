#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace magnetar::guest {

// mount(2); makes `target` if it is missing. Blocks.
absl::Status Mount(const std::string& source, const std::string& target, const std::string& fstype,
                   unsigned long flags, const std::string& data);

// Unmounts what is mounted at `target`, all layers of it; nothing there is fine.
// A busy mount is detached after its file system was synced. Blocks.
absl::Status Unmount(const std::string& target);

// Mount points at or below `path`, innermost first.
absl::StatusOr<std::vector<std::string>> MountsBelow(absl::string_view path);

}  // namespace magnetar::guest
