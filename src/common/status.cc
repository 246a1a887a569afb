#include "magnetar/status.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace magnetar {

absl::Status ErrnoStatus(int err, std::string_view context) {
  return absl::ErrnoToStatus(err, std::string(context));
}

absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(std::string(context), ": ", status.message()));
}

}  // namespace magnetar
