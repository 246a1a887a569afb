#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/child_process.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar {
namespace {

struct Stat {
  uint64_t start_time_ticks = 0;
  char state = 0;
};

absl::StatusOr<Stat> ReadStat(pid_t pid) {
  auto text = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  // A process that ends between open and read gives ESRCH, NOT_FOUND as well. Whatever else fails
  // says nothing about the process: it must not be taken for one that has ended.
  if (absl::IsNotFound(text.status())) return absl::NotFoundError(absl::StrCat("no process ", pid));
  if (!text.ok()) return text.status();
  Stat stat;
  auto ticks = ParseStartTime(*text, &stat.state);
  if (!ticks.ok()) return Annotate(ticks.status(), absl::StrCat("process ", pid));
  stat.start_time_ticks = *ticks;
  return stat;
}

}  // namespace

absl::StatusOr<std::string> BootId() {
  auto text = ReadFile("/proc/sys/kernel/random/boot_id");
  if (!text.ok()) return text.status();
  return std::string(absl::StripAsciiWhitespace(*text));
}

absl::StatusOr<uint64_t> ParseStartTime(std::string_view text, char* state) {
  // Debian's abseil has a string_view of its own.
  const absl::string_view stat(text.data(), text.size());
  // The name, field 2, stands in parentheses and may hold parentheses and spaces.
  const size_t name_end = stat.rfind(')');
  if (name_end == absl::string_view::npos) {
    return absl::InvalidArgumentError("stat: no command name");
  }
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::StripAsciiWhitespace(stat.substr(name_end + 1)), ' ');
  // Field 3 is the first after the name.
  constexpr size_t kState = 3 - 3;
  constexpr size_t kStartTime = 22 - 3;
  uint64_t ticks = 0;
  if (fields.size() <= kStartTime || fields[kState].size() != 1 ||
      !absl::SimpleAtoi(fields[kStartTime], &ticks)) {
    return absl::InvalidArgumentError("stat: no start time");
  }
  if (state != nullptr) *state = fields[kState][0];
  return ticks;
}

absl::StatusOr<ProcessIdentity> IdentifyProcess(pid_t pid) {
  auto stat = ReadStat(pid);
  if (!stat.ok()) return stat.status();
  auto boot_id = BootId();
  if (!boot_id.ok()) return boot_id.status();
  return ProcessIdentity{
      .pid = pid, .start_time_ticks = stat->start_time_ticks, .boot_id = *std::move(boot_id)};
}

absl::StatusOr<UniqueFd> OpenProcess(const ProcessIdentity& identity) {
  auto boot_id = BootId();
  if (!boot_id.ok()) return boot_id.status();
  if (*boot_id != identity.boot_id) {
    return absl::NotFoundError(absl::StrCat("process ", identity.pid, " was of another boot"));
  }
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, identity.pid, 0)));
  if (!fd.ok()) {
    const int err = errno;
    if (err == ESRCH || err == EINVAL) {
      return absl::NotFoundError(absl::StrCat("no process ", identity.pid));
    }
    return ErrnoStatus(err, absl::StrCat("pidfd_open ", identity.pid));
  }
  // With the pidfd in hand the number cannot be given to another process unseen.
  auto stat = ReadStat(identity.pid);
  if (!stat.ok()) return stat.status();
  if (stat->start_time_ticks != identity.start_time_ticks || stat->state == 'Z' ||
      stat->state == 'X') {
    return absl::NotFoundError(absl::StrCat("process ", identity.pid, " has ended"));
  }
  return fd;
}

}  // namespace magnetar
