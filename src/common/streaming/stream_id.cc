#include "magnetar/streaming/stream_id.h"

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "magnetar/ids.h"

namespace magnetar::streaming {
namespace {

// What a log line or an error quotes of a strange name.
constexpr size_t kMaxQuotedBytes = 128;

std::string Quote(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxQuotedBytes)), "\"");
}

constexpr struct {
  absl::string_view suffix;
  StdioKind kind;
} kSuffixes[] = {
    {"-stdin", StdioKind::kStdin},
    {"-stdout", StdioKind::kStdout},
    {"-stderr", StdioKind::kStderr},
};

}  // namespace

absl::StatusOr<StdioKind> ParseStreamId(absl::string_view id) {
  for (const auto& entry : kSuffixes) {
    if (!absl::EndsWith(id, entry.suffix)) continue;
    const absl::string_view owner = id.substr(0, id.size() - entry.suffix.size());
    const absl::Status valid = ValidateId(std::string(owner), "stream id");
    if (!valid.ok()) return valid;
    return entry.kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("stream id ", Quote(id), " does not end in -stdin, -stdout or -stderr"));
}

absl::StatusOr<std::string> StreamIdOfUri(absl::string_view uri, StdioKind kind) {
  if (uri.empty()) return std::string();
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(uri, absl::MaxSplits('?', 1));
  std::string id;
  for (const absl::string_view parameter : absl::StrSplit(parts.second, '&')) {
    absl::string_view value = parameter;
    if (absl::ConsumePrefix(&value, "streaming_id=")) id = std::string(value);
  }
  // Without an address it is the name of a fifo that a containerd with a lost
  // sandbox endpoint has made up.
  if (!absl::StrContains(parts.first, "://") || id.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("stdio ", Quote(uri), " is not <address>?streaming_id=<id>"));
  }
  const absl::StatusOr<StdioKind> found = ParseStreamId(id);
  if (!found.ok()) return found.status();
  if (*found != kind) {
    return absl::InvalidArgumentError(absl::StrCat("stdio ", Quote(uri), " is of another kind"));
  }
  return id;
}

}  // namespace magnetar::streaming
