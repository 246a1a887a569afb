#include "guest-agent/transport/mux_port.h"

#include <dirent.h>
#include <fcntl.h>

#include <cerrno>
#include <chrono>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/storage/disks.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

constexpr auto kTimeout = std::chrono::seconds(10);

}  // namespace

absl::StatusOr<std::string> FindVirtioPort(const std::string& name, const std::string& sys,
                                           const std::string& dev) {
  const std::unique_ptr<DIR, DirectoryCloser> dir(::opendir(sys.c_str()));
  while (dir != nullptr) {
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) break;
    if (entry->d_name[0] == '.') continue;
    const auto found = ReadFile(absl::StrCat(sys, "/", entry->d_name, "/name"), 256);
    if (found.ok() && absl::StripAsciiWhitespace(*found) == name) {
      return absl::StrCat(dev, "/", entry->d_name);
    }
  }
  return absl::NotFoundError(absl::StrCat("no virtio-serial port is named ", name));
}

absl::StatusOr<UniqueFd> OpenMuxPort() {
  absl::StatusOr<Uevents> uevents = Uevents::Open();
  if (!uevents.ok()) return uevents.status();
  const auto deadline = std::chrono::steady_clock::now() + kTimeout;
  while (true) {
    const absl::StatusOr<std::string> path = FindVirtioPort(kMuxPortName);
    if (path.ok()) {
      UniqueFd port(::open(path->c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
      if (port.ok()) return port;
      if (errno != ENOENT) return ErrnoStatus(errno, *path);
    }
    // The name arrives after the device itself, each with an event.
    if (!uevents->Wait(deadline)) return path.ok() ? absl::NotFoundError(*path) : path.status();
  }
}

}  // namespace magnetar::guest
