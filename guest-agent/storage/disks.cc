#include "guest-agent/storage/disks.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/util/news.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxPageBytes = 256;
constexpr unsigned kKernelGroup = 1;

std::string SerialOf(const std::string& device_directory) {
  const absl::StatusOr<std::string> virtio =
      ReadFile(absl::StrCat(device_directory, "/serial"), kMaxPageBytes);
  if (virtio.ok()) return std::string(absl::StripAsciiWhitespace(*virtio));
  const absl::StatusOr<std::string> scsi =
      ReadFile(absl::StrCat(device_directory, "/device/vpd_pg80"), kMaxPageBytes);
  return scsi.ok() ? SerialOfVpdPage80(*scsi) : std::string();
}

}  // namespace

std::string SerialOfVpdPage80(const std::string& page) {
  // Peripheral byte, page code, length (2 bytes), serial.
  constexpr size_t kHeader = 4;
  if (page.size() < kHeader || static_cast<unsigned char>(page[1]) != 0x80) return "";
  const size_t length =
      static_cast<unsigned char>(page[2]) * 256 + static_cast<unsigned char>(page[3]);
  std::string serial = page.substr(kHeader, length);
  serial.erase(std::find(serial.begin(), serial.end(), '\0'), serial.end());
  return std::string(absl::StripAsciiWhitespace(serial));
}

std::optional<std::string> FindDisk(const std::string& serial, const std::string& sys_block,
                                    const std::string& dev) {
  const std::unique_ptr<DIR, DirectoryCloser> dir(::opendir(sys_block.c_str()));
  if (dir == nullptr) return std::nullopt;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name[0] == '.') continue;
    if (SerialOf(absl::StrCat(sys_block, "/", name)) != serial) continue;
    const std::string path = absl::StrCat(dev, "/", name);
    // The kernel shows a disk before it can be opened, which is ENXIO until then; the uevent
    // that announces the disk comes afterwards.
    const UniqueFd opens(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (opens.ok()) return path;
  }
  return std::nullopt;
}

absl::StatusOr<Uevents> Uevents::Open() {
  UniqueFd socket(
      ::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT));
  if (!socket.ok()) return ErrnoStatus(errno, "open uevent socket");
  sockaddr_nl address = {};
  address.nl_family = AF_NETLINK;
  address.nl_groups = kKernelGroup;
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, "bind uevent socket");
  }
  return Uevents(std::move(socket));
}

bool Uevents::Wait(Clock::time_point deadline) { return WaitForNews(socket_.get(), deadline); }

absl::StatusOr<std::string> WaitForDisk(const std::string& serial,
                                        std::chrono::nanoseconds timeout) {
  absl::StatusOr<Uevents> uevents = Uevents::Open();
  if (!uevents.ok()) return uevents.status();
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout);
  while (true) {
    const std::optional<std::string> disk = FindDisk(serial);
    if (disk.has_value()) return *disk;
    if (!uevents->Wait(deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("no disk with serial \"", serial, "\" has appeared"));
    }
  }
}

}  // namespace magnetar::guest
