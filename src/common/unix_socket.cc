#include "magnetar/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar {

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("socket path too long: ", path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return ErrnoStatus(errno, "socket");
  // A unix socket connects at once or not at all: also not if its backlog is full.
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    const std::string message = absl::StrCat("connect to ", path, ": ", std::strerror(errno));
    if (errno == ENOENT || errno == ECONNREFUSED) return absl::NotFoundError(message);
    return absl::ResourceExhaustedError(message);
  }
  return fd;
}

absl::Status ClearSocketPath(const std::string& path) {
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("stat ", path));
  }
  if (!S_ISSOCK(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is no socket"));
  }
  if (ConnectUnix(path).ok()) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is served already"));
  }
  return RemoveFile(path);
}

}  // namespace magnetar
