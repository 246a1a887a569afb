#include <systemd/sd-journal.h>

#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "magnetar/status.h"
#include "src/ctl/logs.h"

namespace magnetar::ctl {
namespace {

constexpr char kUnit[] = "_SYSTEMD_UNIT=vmm-sandboxer.service";

struct JournalCloser {
  void operator()(sd_journal* journal) const { ::sd_journal_close(journal); }
};

absl::Status Unavailable(int error, absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, " the journal: ", std::strerror(-error),
                                             "; name the daemon's log with --log-file"));
}

}  // namespace

absl::Status ReadJournal(const std::string& sandbox_id, const LogSink& sink,
                         const std::string& directory) {
  sd_journal* raw = nullptr;
  int result = directory.empty() ? ::sd_journal_open(&raw, SD_JOURNAL_LOCAL_ONLY)
                                 : ::sd_journal_open_directory(&raw, directory.c_str(), 0);
  if (result < 0) return Unavailable(result, "open");
  std::unique_ptr<sd_journal, JournalCloser> journal(raw);
  result = ::sd_journal_add_match(raw, kUnit, 0);
  if (result < 0) return Unavailable(result, "filter");
  size_t entries = 0;
  while ((result = ::sd_journal_next(raw)) > 0) {
    ++entries;
    const void* data = nullptr;
    size_t size = 0;
    if (::sd_journal_get_data(raw, "MESSAGE", &data, &size) < 0) continue;
    absl::string_view line(static_cast<const char*>(data), size);
    absl::ConsumePrefix(&line, "MESSAGE=");
    if (IsAbout(line, sandbox_id)) sink(ParseLogLine(line));
  }
  if (result < 0) return Unavailable(result, "read");
  if (entries == 0) {
    return absl::UnavailableError(
        "the journal has nothing of vmm-sandboxer.service; name the daemon's log with --log-file");
  }
  return absl::OkStatus();
}

}  // namespace magnetar::ctl
