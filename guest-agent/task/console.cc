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
  iovec body = {name, sizeof(name)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message = {};
  message.msg_iov = &body;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(connection.get(), &message, MSG_CMSG_CLOEXEC) < 0) {
    return ErrnoStatus(errno, "receive the terminal");
  }
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int))) {
    return absl::InternalError("the runtime's console message holds no terminal");
  }
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  UniqueFd master(fd);
  if (::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK) != 0) {
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
