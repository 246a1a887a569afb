#pragma once

#include <string>

#include "absl/status/status.h"
#include "magnetar/supervisor.pb.h"

namespace magnetar::supervisor {

// The record as JSON with the message's field names, and a newline.
std::string ExitJson(const v1::ExitRecord& record);

// `<directory>/exit.json`, whole or not at all.
absl::Status WriteExitFile(const std::string& directory, const v1::ExitRecord& record);

}  // namespace magnetar::supervisor
