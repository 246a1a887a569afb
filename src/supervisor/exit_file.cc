#include "src/supervisor/exit_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::supervisor {

std::string ExitJson(const v1::ExitRecord& record) {
  const nlohmann::json json = {{"status", record.status()},
                               {"exited_at_ns", record.exited_at_ns()},
                               {"reason", record.reason()},
                               {"last_lines", record.last_lines()},
                               {"unkillable", record.unkillable()}};
  // A process's name or an error's text need not be UTF-8.
  return absl::StrCat(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), "\n");
}

absl::StatusOr<ExitFile> ExitFile::Create(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/exit.json");
  // Not over the record of an earlier VM, which somebody may be reading.
  MAGNETAR_RETURN_IF_ERROR(RemoveFile(path));
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("create ", path));
  return ExitFile(std::move(fd));
}

absl::Status ExitFile::Write(const v1::ExitRecord& record) {
  const std::string text = ExitJson(record);
  if (::write(fd_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::fsync(fd_.get()) != 0) {
    return ErrnoStatus(errno, "write exit.json");
  }
  return absl::OkStatus();
}

}  // namespace magnetar::supervisor
