#include "src/daemon/sandbox/guest_cid.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <random>

#include "absl/status/status.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {
namespace {

constexpr int kAttempts = 64;
// VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h, a header that C++ does not take.
constexpr unsigned long kSetGuestCid = _IOW(0xAF, 0x60, uint64_t);

absl::StatusOr<uint32_t> TryRandomCid(std::random_device& random) {
  UniqueFd device(::open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC));
  if (!device.ok()) return ErrnoStatus(errno, "open /dev/vhost-vsock");
  std::uniform_int_distribution<uint32_t> any(0x10000, 0x7fffffff);
  const uint64_t cid = any(random);
  if (::ioctl(device.get(), kSetGuestCid, &cid) != 0) {
    return ErrnoStatus(errno, "set a guest CID");
  }
  return static_cast<uint32_t>(cid);
}

}  // namespace

absl::StatusOr<uint32_t> FindGuestCid() {
  std::random_device random;
  absl::StatusOr<uint32_t> cid = absl::InternalError("");
  for (int i = 0; i < kAttempts; ++i) {
    cid = TryRandomCid(random);
    if (cid.ok() || errno != EADDRINUSE) break;
  }
  return cid;
}

}  // namespace magnetar::daemon
