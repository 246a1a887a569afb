#pragma once

#include <sys/stat.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// The directory that a sandbox's file server exports: `<container id>/<name>` in it are mount
// points. A guest may be able to write there, so nothing in it is trusted: every step goes
// from a descriptor, follows no link and crosses no mount. The directory may itself be a
// read-only mount; entries are made through a private, writable copy of it.
//
// Container ids and names are single path components. All calls block; Unmount and UnmountAll
// change the working directory.
class SharedTree {
 public:
  // NOT_FOUND if it is absent, FAILED_PRECONDITION if it is another than `expected`.
  static absl::StatusOr<SharedTree> Open(const std::string& path, const struct stat& expected);

  // Makes an empty directory, or an empty file, and opens it to be mounted on.
  absl::StatusOr<UniqueFd> MakeMountPoint(const std::string& container_id, const std::string& name,
                                          bool directory);
  // Undoes what is mounted there; nothing is fine.
  absl::Status Unmount(const std::string& container_id, const std::string& name);
  // Undoes all mounts on entries of containers; what is mounted below them goes with them.
  absl::Status UnmountAll();
  // Remove() of all containers.
  absl::Status RemoveAll();
  // Removes a container's mount points once nothing is mounted on them; none is fine.
  absl::Status Remove(const std::string& container_id);

 private:
  SharedTree(UniqueFd exported, UniqueFd writable)
      : exported_(std::move(exported)), writable_(std::move(writable)) {}

  UniqueFd exported_;
  UniqueFd writable_;
};

}  // namespace magnetar::daemon
