#pragma once

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

// The agent's log: one line per event on stderr, which is the VM's console,
// "<ISO time> <level> <message> key=value...". Thread-safe; a line is one write(2).
namespace magnetar::guest {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

// Lines below `level` are dropped. "debug", "info", "warn", "error"; others mean info.
void SetLogLevel(absl::string_view name);
// Appended to every later line as "sandbox=<id>".
void SetLogSandbox(absl::string_view sandbox_id);
bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, absl::string_view message);

template <typename... Args>
void Log(LogLevel level, const Args&... args) {
  if (LogEnabled(level)) LogLine(level, absl::StrCat(args...));
}

}  // namespace magnetar::guest
