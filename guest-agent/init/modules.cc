#include "guest-agent/init/modules.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

std::vector<std::string> ParseModuleList(const std::string& text) {
  std::vector<std::string> paths;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (!line.empty()) paths.emplace_back(line);
  }
  return paths;
}

void LoadModules(const std::string& list) {
  const absl::StatusOr<std::string> text = ReadFile(list);
  if (!text.ok()) return;
  for (const std::string& path : ParseModuleList(*text)) {
    const UniqueFd module(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    const bool loaded =
        module.ok() && (::syscall(SYS_finit_module, module.get(), "", 0) == 0 || errno == EEXIST);
    if (!loaded) Log(LogLevel::kWarn, "module not loaded path=", path, " error=", strerror(errno));
  }
}

void LoadModulesFor(const std::string& name) {
  static std::mutex mutex;
  static std::set<std::string>& loaded = *new std::set<std::string>();
  const std::lock_guard<std::mutex> lock(mutex);
  if (!ValidateId(name, "modules").ok() || !loaded.insert(name).second) return;
  LoadModules(absl::StrCat("/etc/magnetar/modules.d/", name));
}

}  // namespace magnetar::guest
