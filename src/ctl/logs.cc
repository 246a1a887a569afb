#include "src/ctl/logs.h"

#include <cerrno>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "magnetar/status.h"

namespace magnetar::ctl {

LogLine ParseLogLine(absl::string_view line) {
  const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(' ', 2));
  // Something else wrote this: a line of systemd's, or of a library.
  const bool ours = parts.size() == 3 && !parts[0].empty() && absl::ascii_isdigit(parts[0][0]) &&
                    absl::StrContains(parts[0], 'T');
  if (!ours) return {.time = "", .level = "", .text = std::string(line)};
  return {
      .time = std::string(parts[0]), .level = std::string(parts[1]), .text = std::string(parts[2])};
}

bool IsAbout(absl::string_view line, absl::string_view sandbox_id) {
  const std::string field = absl::StrCat("sandbox=", sandbox_id);
  for (absl::string_view word : absl::StrSplit(line, ' ')) {
    if (word == field) return true;
  }
  return false;
}

absl::Status ReadLogFile(const std::string& path, const std::string& sandbox_id,
                         const LogSink& sink) {
  std::ifstream in(path);
  if (!in) return ErrnoStatus(errno, absl::StrCat("log file ", path));
  std::string line;
  while (std::getline(in, line)) {
    if (IsAbout(line, sandbox_id)) sink(ParseLogLine(line));
  }
  return absl::OkStatus();
}

}  // namespace magnetar::ctl
