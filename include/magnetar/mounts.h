#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

// Texts about mounts, as mount(8) and the kernel write them. Pure.
namespace magnetar {

// Options as mount(8) has them, taken apart into the kernel's flags and what is left for the
// file system: {"ro", "noatime", "nouuid"} gives MS_RDONLY | MS_NOATIME and {"nouuid"}.
struct MountOptions {
  unsigned long flags = 0;
  std::vector<std::string> data;
};
MountOptions ParseMountOptions(const std::vector<std::string>& options);

// What is mounted, in the order of mounting; `mountinfo` is the text of /proc/<pid>/mountinfo
// (format: proc_pid_mountinfo(5)).
struct MountInfo {
  std::string point;
  std::string type;
  std::string id;    // as /proc/<pid>/fdinfo has it
  std::string root;  // what of the file system is there; "/" is all
};
std::vector<MountInfo> ParseMountInfo(absl::string_view mountinfo);
std::vector<std::string> MountPoints(absl::string_view mountinfo);

}  // namespace magnetar
