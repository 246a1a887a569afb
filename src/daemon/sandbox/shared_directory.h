#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace magnetar::daemon {

// The directory that a sandbox's file server exports: a read-only mount of its own. What is
// shared below it is mounted in the file server's namespace alone (storage/file_server.h).
// Calls block.
class SharedDirectory {
 public:
  virtual ~SharedDirectory() = default;
  virtual absl::Status Make(const std::string& path) = 0;
  // An absent one is fine.
  virtual absl::Status Remove(const std::string& path) = 0;
};

std::unique_ptr<SharedDirectory> NewSharedDirectory();

}  // namespace magnetar::daemon
