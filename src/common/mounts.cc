#include "magnetar/mounts.h"

#include <sys/mount.h>

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "absl/strings/str_split.h"

namespace magnetar {
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
    // Words of mount(8) and containerd that say nothing to the kernel: the host has already
    // made a block device of the file.
    {"defaults", 0, 0},
    {"loop", 0, 0},
};

// mountinfo writes space, tab, newline and backslash as three octal digits.
std::string Unescape(absl::string_view field) {
  std::string text;
  for (size_t i = 0; i < field.size(); ++i) {
    const auto digit = [field](size_t at) { return field[at] >= '0' && field[at] <= '7'; };
    if (field[i] == '\\' && i + 3 < field.size() && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      text.push_back(static_cast<char>((field[i + 1] - '0') * 64 + (field[i + 2] - '0') * 8 +
                                       (field[i + 3] - '0')));
      i += 3;
    } else {
      text.push_back(field[i]);
    }
  }
  return text;
}

}  // namespace

MountOptions ParseMountOptions(const std::vector<std::string>& options) {
  MountOptions out;
  for (const std::string& option : options) {
    const auto* known = std::find_if(std::begin(kOptions), std::end(kOptions),
                                     [&option](const auto& o) { return o.name == option; });
    if (known == std::end(kOptions)) {
      out.data.push_back(option);
    } else {
      out.flags = (out.flags & ~known->clear) | known->set;
    }
  }
  return out;
}

std::vector<MountInfo> ParseMountInfo(absl::string_view mountinfo) {
  // "36 35 98:0 /root /mount/point options [tag...] - type source ...": the first, the fourth and
  // the fifth field, and the one after the separator.
  constexpr size_t kIdField = 0, kRootField = 3, kMountPointField = 4;
  std::vector<MountInfo> mounts;
  for (const absl::string_view line : absl::StrSplit(mountinfo, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
    const auto separator = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() <= kMountPointField || fields.end() - separator < 2) continue;
    mounts.push_back({Unescape(fields[kMountPointField]), std::string(separator[1]),
                      std::string(fields[kIdField]), Unescape(fields[kRootField])});
  }
  return mounts;
}

std::vector<std::string> MountPoints(absl::string_view mountinfo) {
  std::vector<std::string> points;
  for (MountInfo& mount : ParseMountInfo(mountinfo)) points.push_back(std::move(mount.point));
  return points;
}

}  // namespace magnetar
