#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "guest-agent/pod/pod.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

bool IsPart(absl::string_view part) {
  return !part.empty() && part != "." && part != ".." &&
         std::all_of(part.begin(), part.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '_' || c == '-' || c == '.';
         });
}

}  // namespace

absl::Status WriteSysctl(const std::string& proc_sys, const std::string& name,
                         const std::string& value) {
  // As sysctl(8): with a slash in it, the slashes separate and a dot is a dot
  // ("net/ipv4/conf/eth0.1/forwarding"), else the dots separate.
  const bool slashes = absl::StrContains(name, '/');
  const std::vector<absl::string_view> parts = absl::StrSplit(name, slashes ? '/' : '.');
  if (parts.size() < 2 || !std::all_of(parts.begin(), parts.end(), IsPart)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(name.substr(0, 128)), "\" is no sysctl"));
  }
  std::string path = proc_sys;
  for (const absl::string_view part : parts) absl::StrAppend(&path, "/", part);
  absl::Status written = WriteExisting(path, value);
  // "not found" would be said of the pod.
  if (absl::IsNotFound(written)) written = absl::InvalidArgumentError(written.message());
  return Annotate(written, name);
}

absl::StatusOr<uint64_t> ReadMeminfo(const std::string& meminfo, absl::string_view field) {
  const absl::StatusOr<std::string> text = ReadFile(meminfo);
  if (!text.ok()) return text.status();
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t kilobytes = 0;
    if (words.size() >= 2 && absl::ConsumeSuffix(&words[0], ":") && words[0] == field &&
        absl::SimpleAtoi(words[1], &kilobytes)) {
      return kilobytes * 1024;
    }
  }
  return absl::InternalError(absl::StrCat(meminfo, " has no ", field));
}

}  // namespace magnetar::guest
