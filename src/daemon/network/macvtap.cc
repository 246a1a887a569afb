#include "src/daemon/network/macvtap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/mount.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

// A file system that is mounted nowhere and ends with its descriptor. Sysfs shows the devices of
// the netns in which this is called.
absl::StatusOr<UniqueFd> OpenFileSystem(const char* type) {
  const UniqueFd context(static_cast<int>(::syscall(SYS_fsopen, type, FSOPEN_CLOEXEC)));
  if (!context.ok()) return ErrnoStatus(errno, absl::StrCat("fsopen ", type));
  if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return ErrnoStatus(errno, absl::StrCat("create a ", type));
  }
  UniqueFd root(
      static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOEXEC)));
  if (!root.ok()) return ErrnoStatus(errno, absl::StrCat("fsmount ", type));
  return root;
}

absl::StatusOr<dev_t> DeviceOf(const LinkState& interface) {
  auto sysfs = OpenFileSystem("sysfs");
  if (!sysfs.ok()) return sysfs.status();
  const std::string path =
      absl::StrCat("class/net/", interface.name, "/tap", interface.index, "/dev");
  const UniqueFd file(::openat(sysfs->get(), path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.ok()) return ErrnoStatus(errno, absl::StrCat("open ", path, " of sysfs"));
  char text[32] = {};
  if (::read(file.get(), text, sizeof(text) - 1) < 0) {
    return ErrnoStatus(errno, absl::StrCat("read ", path, " of sysfs"));
  }
  unsigned major = 0, minor = 0;
  if (std::sscanf(text, "%u:%u", &major, &minor) != 2) {
    return absl::InternalError(absl::StrCat(path, " of sysfs holds no device number"));
  }
  return makedev(major, minor);
}

absl::StatusOr<UniqueFd> OpenDevice(dev_t device) {
  auto directory = OpenFileSystem("tmpfs");
  if (!directory.ok()) return directory.status();
  if (::mknodat(directory->get(), "tap", S_IFCHR | 0600, device) != 0) {
    return ErrnoStatus(errno, "make a device node");
  }
  UniqueFd fd(::openat(directory->get(), "tap", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return ErrnoStatus(errno, "open its tap");
  return fd;
}

}  // namespace

absl::StatusOr<UniqueFd> OpenMacvtap(const LinkState& interface) {
  auto device = DeviceOf(interface);
  if (!device.ok()) return device.status();
  auto fd = OpenDevice(*device);
  if (!fd.ok()) return fd.status();
  ifreq request = {};
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (::ioctl(fd->get(), TUNSETIFF, &request) != 0) return ErrnoStatus(errno, "set up its tap");
  if (::ioctl(fd->get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) != 0) {
    return ErrnoStatus(errno, "set offloads of its tap");
  }
  return fd;
}

}  // namespace magnetar::daemon
