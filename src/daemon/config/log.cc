#include "src/daemon/config/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace magnetar::daemon {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made =
        std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// Of one value: some come from guests.
constexpr size_t kMaxValueBytes = 4 << 10;

bool NeedsQuotes(std::string_view value) {
  return value.empty() || value.size() > kMaxValueBytes ||
         std::any_of(value.begin(), value.end(), [](char c) {
           return c <= ' ' || c == '"' || c == '\\' || c == '=' || c == 0x7f;
         });
}

// Debian's abseil has a string_view of its own.
std::string Escape(std::string_view text) {
  const bool cut = text.size() > kMaxValueBytes;
  if (cut) text = text.substr(0, kMaxValueBytes);
  return absl::StrCat(absl::Utf8SafeCEscape(absl::string_view(text.data(), text.size())),
                      cut ? "..." : "");
}

}  // namespace

std::string FormatLogLine(std::string_view message, LogFields fields) {
  std::string line = Escape(message);
  for (const auto& [key, value] : fields) {
    if (NeedsQuotes(value)) {
      absl::StrAppend(&line, " ", std::string(key), "=\"", Escape(value), "\"");
    } else {
      absl::StrAppend(&line, " ", std::string(key), "=", value);
    }
  }
  return line;
}

void Log(LogLevel level, std::string_view message, LogFields fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(ToSpdlog(level))) return;
  logger.log(ToSpdlog(level), spdlog::string_view_t(FormatLogLine(message, fields)));
}

void SetLogLevel(std::string_view level) {
  LogLevel parsed = LogLevel::kInfo;
  if (level == "debug") parsed = LogLevel::kDebug;
  if (level == "warn") parsed = LogLevel::kWarn;
  if (level == "error") parsed = LogLevel::kError;
  Logger().set_level(ToSpdlog(parsed));
}

}  // namespace magnetar::daemon
