#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Small files: state records, proc and sysfs entries. All calls block.
namespace magnetar {

// The whole file, at most `limit` bytes (RESOURCE_EXHAUSTED beyond). NOT_FOUND if it is absent.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t limit = 4 << 20);
// The same of a path that starts at a directory.
absl::StatusOr<std::string> ReadFileAt(int directory, const std::string& path,
                                       size_t limit = 4 << 20);

// Writes in one write(2) to an existing file, as sysfs and cgroupfs want it.
absl::Status WriteExisting(const std::string& path, std::string_view data);

// Replaces `path` so that a reader, or the next boot after a crash, finds the old
// or the new contents whole: temporary file, fsync, rename, fsync of the directory.
absl::Status WriteFileAtomically(const std::string& path, std::string_view data, int mode = 0600);

// mkdir -p; existing directories are fine.
absl::Status MakeDirectories(const std::string& path, int mode = 0700);

// unlink; an absent file is fine.
absl::Status RemoveFile(const std::string& path);

// Removes a tree without following symbolic links or crossing into another
// mount (FAILED_PRECONDITION there). An absent one is fine.
absl::Status RemoveTree(const std::string& path);

}  // namespace magnetar
