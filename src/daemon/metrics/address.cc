#include "src/daemon/metrics/address.h"

#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "magnetar/status.h"
#include "magnetar/supervisor_launch.h"
#include "magnetar/unix_socket.h"

namespace magnetar::daemon {
namespace {

absl::StatusOr<UniqueFd> ListenAt(const addrinfo& at, const std::string& address) {
  UniqueFd fd(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, at.ai_protocol));
  if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("socket for ", address));
  // Connections of the daemon before this one are no reason not to listen.
  const int on = 1;
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (::bind(fd.get(), at.ai_addr, at.ai_addrlen) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind ", address));
  }
  if (::listen(fd.get(), SOMAXCONN) != 0) {
    return ErrnoStatus(errno, absl::StrCat("listen on ", address));
  }
  return fd;
}

}  // namespace

absl::StatusOr<UniqueFd> ListenForMetrics(const std::string& address) {
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    const std::string path(rest);
    MAGNETAR_RETURN_IF_ERROR(ClearSocketPath(path));
    absl::StatusOr<UniqueFd> fd = ListenUnix(path);
    if (fd.ok() && ::fcntl(fd->get(), F_SETFL, O_NONBLOCK) != 0) {
      return ErrnoStatus(errno, absl::StrCat("fcntl ", path));
    }
    return fd;
  }
  const size_t colon = rest.rfind(':');
  absl::string_view host = rest.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  const std::string port(rest.substr(colon + 1));
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(std::string(host).c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("look up ", address, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, &::freeaddrinfo);
  absl::StatusOr<UniqueFd> fd = absl::NotFoundError(absl::StrCat("no address for ", address));
  for (const addrinfo* at = found; at != nullptr && !fd.ok(); at = at->ai_next) {
    fd = ListenAt(*at, address);
  }
  return fd;
}

}  // namespace magnetar::daemon
