#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

// Linux's mount calls on descriptors, so that what was looked at is what is mounted.
// All calls block. Errors: errno's, without naming the place.
namespace magnetar::daemon {

struct TreeOptions {
  bool recursive = false;
  enum class ReadOnly { kNo, kTop, kAll };
  ReadOnly read_only = ReadOnly::kNo;
  bool follow_host = false;  // a slave of the source instead of private
};

// A copy, mounted nowhere yet, of the file or tree that an O_PATH descriptor names.
absl::StatusOr<UniqueFd> CloneTree(int source, const TreeOptions& options);

// Mounts such a copy on what `target`, an O_PATH descriptor, names.
absl::Status AttachTree(int tree, int target);

// An overlay with containerd's options (lowerdir=, upperdir=, ..., ro), mounted nowhere yet.
// Options that do not fit the page which the kernel reads are shortened by naming the lower layers
// relative to their common directory. `scratch`: any directory.
absl::StatusOr<UniqueFd> MakeOverlay(const std::vector<std::string>& options,
                                     const std::string& scratch);

// Undoes whatever is mounted on entry `name` of directory `parent` (O_PATH), one above the
// other; lazily where it is still in use. Nothing mounted and nothing there are fine. Changes the
// working directory.
absl::Status UnmountEntry(int parent, const std::string& name);

// As mount(2) takes them.
struct MountArguments {
  unsigned long flags = 0;
  std::string data;
  std::string directory;  // relative paths in `data` start here; empty: there are none
};

// Pure. FAILED_PRECONDITION if the options do not fit into `page_bytes` even when shortened.
absl::StatusOr<MountArguments> OverlayArguments(const std::vector<std::string>& options,
                                                size_t page_bytes);

}  // namespace magnetar::daemon
