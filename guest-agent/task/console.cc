#include "guest-agent/task/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "magnetar/descriptor_message.h"
#include "magnetar/status.h"

namespace magnetar::guest {

absl::StatusOr<UniqueFd> ListenForConsole(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("console socket path is too long: ", path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.ok()) return ErrnoStatus(errno, "console socket");
  ::unlink(path.c_str());
  if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener.get(), 1) != 0) {
    return ErrnoStatus(errno, absl::StrCat("listen at ", path));
  }
  return listener;
}

absl::StatusOr<UniqueFd> ReceiveConsole(int listener) {
  const UniqueFd connection(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection.ok()) return ErrnoStatus(errno, "the runtime delivered no terminal");
  char name[256];
  UniqueFd master;
  if (ReceiveWithDescriptor(connection.get(), name, sizeof(name), master) < 0) {
    return ErrnoStatus(errno, "receive the terminal");
  }
  if (!master.ok()) {
    return absl::InternalError("the runtime's console message holds no terminal");
  }
  if (::fcntl(master.get(), F_SETFL, ::fcntl(master.get(), F_GETFL) | O_NONBLOCK) != 0) {
    return ErrnoStatus(errno, "set up the terminal");
  }
  return master;
}

absl::Status ResizeConsole(int master, uint32_t columns, uint32_t rows) {
  constexpr uint32_t kMax = std::numeric_limits<unsigned short>::max();
  winsize size = {};
  size.ws_col = static_cast<unsigned short>(std::min(columns, kMax));
  size.ws_row = static_cast<unsigned short>(std::min(rows, kMax));
  if (::ioctl(master, TIOCSWINSZ, &size) != 0) return ErrnoStatus(errno, "resize the terminal");
  return absl::OkStatus();
}

}  // namespace magnetar::guest
