#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace magnetar::ctl {

// One line of the daemon's log: "<ISO time> <level> <message> key=value ...".
struct LogLine {
  std::string time;
  std::string level;
  std::string text;  // message and keys
};

LogLine ParseLogLine(absl::string_view line);

// Whether the line has the field sandbox=<id>.
bool IsAbout(absl::string_view line, absl::string_view sandbox_id);

using LogSink = std::function<void(const LogLine&)>;

// Lines about a sandbox from a file. NOT_FOUND.
absl::Status ReadLogFile(const std::string& path, const std::string& sandbox_id,
                         const LogSink& sink);

// The same from the journal of the unit vmm-sandboxer.service; `directory` is the system's journal
// but in tests. UNAVAILABLE if there is no journal that may be read.
absl::Status ReadJournal(const std::string& sandbox_id, const LogSink& sink,
                         const std::string& directory = "");

}  // namespace magnetar::ctl
