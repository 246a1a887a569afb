#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {

// The record as JSON with the message's field names, and a newline.
std::string ExitJson(const v1::ExitRecord& record);

// `<directory>/exit.json`: empty as long as the VM lives. It is opened at the beginning, because
// at the end the supervisor may open nothing any more.
class ExitFile {
 public:
  static absl::StatusOr<ExitFile> Create(const std::string& directory);
  // In one write, so that a reader finds all of it or, until then, nothing. Once.
  absl::Status Write(const v1::ExitRecord& record);

 private:
  explicit ExitFile(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace magnetar::supervisor
