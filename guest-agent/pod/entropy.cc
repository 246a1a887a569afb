#include <fcntl.h>
#include <linux/random.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "guest-agent/pod/pod.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

absl::Status AddEntropy(const std::string& bytes) {
  constexpr size_t kMaxBytes = 4096;
  const size_t n = std::min(bytes.size(), kMaxBytes);
  const UniqueFd fd(::open("/dev/urandom", O_WRONLY | O_CLOEXEC));
  if (!fd.ok()) return ErrnoStatus(errno, "open /dev/urandom");
  // rand_pool_info ends in an array of the data.
  std::vector<int> storage((sizeof(rand_pool_info) + n) / sizeof(int) + 1);
  auto* info = reinterpret_cast<rand_pool_info*>(storage.data());
  info->entropy_count = static_cast<int>(n * 8);
  info->buf_size = static_cast<int>(n);
  std::memcpy(info->buf, bytes.data(), n);
  if (::ioctl(fd.get(), RNDADDENTROPY, info) != 0) return ErrnoStatus(errno, "RNDADDENTROPY");
  return absl::OkStatus();
}

}  // namespace magnetar::guest
