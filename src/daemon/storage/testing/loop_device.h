#pragma once

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// A real loop device on the image, where there may be one; detaches itself with the last user.
inline UniqueFd AttachLoop(const std::string& image, std::string* path) {
  const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  const UniqueFd file(::open(image.c_str(), O_RDWR | O_CLOEXEC));
  for (int attempt = 0; control.ok() && attempt < 100; ++attempt) {
    *path = "/dev/loop" + std::to_string(::ioctl(control.get(), LOOP_CTL_GET_FREE));
    UniqueFd device(::open(path->c_str(), O_RDWR | O_CLOEXEC));
    loop_config config = {};
    config.fd = static_cast<uint32_t>(file.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (device.ok() && ::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) return device;
    if (!device.ok() || errno != EBUSY) break;
  }
  return UniqueFd();
}

}  // namespace magnetar::daemon
