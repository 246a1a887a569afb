#include "src/supervisor/exit_file.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"

namespace magnetar::supervisor {

std::string ExitJson(const v1::ExitRecord& record) {
  const nlohmann::json json = {{"status", record.status()},
                               {"exited_at_ns", record.exited_at_ns()},
                               {"reason", record.reason()},
                               {"last_lines", record.last_lines()}};
  // A process's name or an error's text need not be UTF-8.
  return absl::StrCat(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), "\n");
}

absl::Status WriteExitFile(const std::string& directory, const v1::ExitRecord& record) {
  return WriteFileAtomically(absl::StrCat(directory, "/exit.json"), ExitJson(record));
}

}  // namespace magnetar::supervisor
