#include "guest-agent/init/modules.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

// errno says why not.
bool LoadModule(const std::string& path) {
  const UniqueFd module(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  return module.ok() && (::syscall(SYS_finit_module, module.get(), "", 0) == 0 || errno == EEXIST);
}

}  // namespace

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
    if (LoadModule(path)) continue;
    Log(LogLevel::kWarn, "module not loaded path=", path, " error=", strerror(errno));
  }
}

bool IsModprobe(const char* program) {
  return absl::EndsWith(absl::StrCat("/", program), "/modprobe");
}

std::vector<std::string> RequestedModules(const std::string& text, std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.empty() || words.front() != name) continue;
    words.erase(words.begin());
    return words;
  }
  return {};
}

int ModprobeMain(const std::vector<std::string>& arguments) {
  const absl::StatusOr<std::string> text = ReadFile("/etc/magnetar/modules.request");
  if (!text.ok() || arguments.empty()) return 1;
  bool loaded = false;
  // The last is the one that was asked for; an accelerated variant before it may be for another
  // processor.
  for (const std::string& path : RequestedModules(*text, arguments.back())) {
    loaded = LoadModule(path);
  }
  return loaded ? 0 : 1;
}

void LoadModulesFor(const std::string& name) {
  static std::mutex mutex;
  static std::set<std::string>& loaded = *new std::set<std::string>();
  const std::lock_guard<std::mutex> lock(mutex);
  if (!ValidateId(name, "modules").ok() || !loaded.insert(name).second) return;
  LoadModules(absl::StrCat("/etc/magnetar/modules.d/", name));
}

}  // namespace magnetar::guest
