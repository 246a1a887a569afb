#include "guest-agent/util/log.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <mutex>
#include <string>

namespace magnetar::guest {
namespace {

// A console line that is longer was not written by a person.
constexpr size_t kMaxLineBytes = 4096;

std::atomic<LogLevel> minimum{LogLevel::kInfo};
std::mutex sandbox_mutex;
std::string& SandboxSuffix() {
  static std::string suffix;
  return suffix;
}

absl::string_view Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarn:
      return "warn";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

}  // namespace

void SetLogLevel(absl::string_view name) {
  for (const LogLevel level :
       {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarn, LogLevel::kError}) {
    if (name == Name(level)) {
      minimum = level;
      return;
    }
  }
  minimum = LogLevel::kInfo;
}

void SetLogSandbox(absl::string_view sandbox_id) {
  const std::lock_guard<std::mutex> lock(sandbox_mutex);
  SandboxSuffix() = absl::StrCat(" sandbox=", sandbox_id);
}

bool LogEnabled(LogLevel level) { return level >= minimum.load(std::memory_order_relaxed); }

void LogLine(LogLevel level, absl::string_view message) {
  timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  tm utc;
  ::gmtime_r(&now.tv_sec, &utc);
  char stamp[32];
  const size_t n = std::strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
  const std::string millis = std::to_string(1000 + now.tv_nsec / 1000000).substr(1);
  std::string line = absl::StrCat(absl::string_view(stamp, n), ".", millis, "Z ", Name(level), " ",
                                  message.substr(0, kMaxLineBytes));
  std::replace(line.begin(), line.end(), '\n', ' ');
  {
    const std::lock_guard<std::mutex> lock(sandbox_mutex);
    line.append(SandboxSuffix());
  }
  line.push_back('\n');
  // A console that takes no more loses the line; there is nowhere else to tell it.
  const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  static_cast<void>(written);
}

}  // namespace magnetar::guest
