#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

// One line per message on stderr: "<ISO time> <level> <message> key=value ...".
// Values that hold spaces, quotes or control characters are quoted and escaped, so
// that nothing from outside can forge a line. Any thread.
namespace magnetar::daemon {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

using LogFields = std::initializer_list<std::pair<std::string_view, std::string>>;

void Log(LogLevel level, std::string_view message, LogFields fields = {});

// debug, info, warn, error; anything else is info.
void SetLogLevel(std::string_view level);

// The line without its time and level; for tests.
std::string FormatLogLine(std::string_view message, LogFields fields);

}  // namespace magnetar::daemon
