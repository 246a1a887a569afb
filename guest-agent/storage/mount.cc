#include "guest-agent/storage/mount.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

constexpr struct {
  absl::string_view name;
  unsigned long set;
  unsigned long clear;
} kOptions[] = {
    {"ro", MS_RDONLY, 0},
    {"rw", 0, MS_RDONLY},
    {"nosuid", MS_NOSUID, 0},
    {"suid", 0, MS_NOSUID},
    {"nodev", MS_NODEV, 0},
    {"dev", 0, MS_NODEV},
    {"noexec", MS_NOEXEC, 0},
    {"exec", 0, MS_NOEXEC},
    {"sync", MS_SYNCHRONOUS, 0},
    {"dirsync", MS_DIRSYNC, 0},
    {"noatime", MS_NOATIME, 0},
    {"nodiratime", MS_NODIRATIME, 0},
    {"relatime", MS_RELATIME, 0},
    {"strictatime", MS_STRICTATIME, 0},
    {"lazytime", MS_LAZYTIME, 0},
    {"bind", MS_BIND, 0},
    {"rbind", MS_BIND | MS_REC, 0},
    // Words of mount(8) and containerd that say nothing to the kernel here: the
    // host has already made a block device of the file.
    {"defaults", 0, 0},
    {"loop", 0, 0},
};

// mountinfo writes space, tab, newline and backslash as octal.
std::string Unescape(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

void SyncFileSystem(const std::string& target) {
  const UniqueFd fd(::open(target.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok() || ::syncfs(fd.get()) != 0) {
    Log(LogLevel::kWarn, "sync of ", target, " failed errno=", errno);
  }
}

}  // namespace

MountFlags ParseMountOptions(const std::vector<std::string>& options) {
  MountFlags out;
  for (const std::string& option : options) {
    const auto* known = std::find_if(std::begin(kOptions), std::end(kOptions),
                                     [&](const auto& o) { return o.name == option; });
    if (known != std::end(kOptions)) {
      out.flags = (out.flags & ~known->clear) | known->set;
    } else {
      absl::StrAppend(&out.data, out.data.empty() ? "" : ",", option);
    }
  }
  return out;
}

absl::Status Mount(const std::string& source, const std::string& target, const std::string& fstype,
                   unsigned long flags, const std::string& data) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(target, 0755));
  const unsigned long first = flags & MS_BIND ? flags & (MS_BIND | MS_REC) : flags;
  if (::mount(source.c_str(), target.c_str(), fstype.c_str(), first,
              data.empty() ? nullptr : data.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("mount ", source, " at ", target, " as ",
                                           fstype.empty() ? "bind" : fstype));
  }
  // The kernel takes the other flags of a bind mount in a second step only.
  if ((flags & MS_BIND) != 0 && (flags & ~(MS_BIND | MS_REC)) != 0 &&
      ::mount(nullptr, target.c_str(), nullptr, (flags & ~MS_REC) | MS_REMOUNT, nullptr) != 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("remount ", target));
    ::umount2(target.c_str(), MNT_DETACH);
    return status;
  }
  return absl::OkStatus();
}

absl::Status Unmount(const std::string& target) {
  while (::umount2(target.c_str(), UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();
  if (errno != EBUSY) return ErrnoStatus(errno, absl::StrCat("unmount ", target));
  Log(LogLevel::kWarn, "mount is busy and gets detached target=", target);
  SyncFileSystem(target);
  if (::umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0 && errno != EINVAL) {
    return ErrnoStatus(errno, absl::StrCat("detach ", target));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MountsBelow(absl::string_view path) {
  const absl::StatusOr<std::string> info = ReadFile("/proc/self/mountinfo");
  if (!info.ok()) return info.status();
  std::vector<std::string> found;
  for (const absl::string_view line : absl::StrSplit(*info, '\n', absl::SkipEmpty())) {
    // "36 35 98:0 /root /mount/point options ...": the fifth field.
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(' ', 5));
    if (fields.size() < 6) continue;
    std::string target = Unescape(fields[4]);
    const bool below = absl::StartsWith(target, path) &&
                       (target.size() == path.size() || target[path.size()] == '/');
    if (below) found.push_back(std::move(target));
  }
  std::reverse(found.begin(), found.end());
  return found;
}

}  // namespace magnetar::guest
