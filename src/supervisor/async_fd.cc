#include "src/supervisor/async_fd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar::supervisor {
namespace {

Co<absl::Status> Wait(AsyncFd& fd, AsyncFd::wait_type type) {
  auto wait = fd.async_wait(type, asio::as_tuple(asio::use_awaitable));
  auto [error] = co_await std::move(wait);
  if (error) co_return absl::CancelledError(error.message());
  co_return absl::OkStatus();
}

// Linux hands accept(2) the errors that a new connection has met (its man page); the
// listener is as good as before.
bool IsOfTheConnection(int error) {
  constexpr int kErrors[] = {EINTR,  ECONNABORTED, EPROTO,      ENETDOWN,   ENOPROTOOPT, EHOSTDOWN,
                             ENONET, EHOSTUNREACH, ENETUNREACH, ECONNRESET, ETIMEDOUT};
  return std::find(std::begin(kErrors), std::end(kErrors), error) != std::end(kErrors);
}

bool IsShortage(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

}  // namespace

Co<absl::Status> WaitReadable(AsyncFd& fd) { return Wait(fd, AsyncFd::wait_read); }
Co<absl::Status> WaitWritable(AsyncFd& fd) { return Wait(fd, AsyncFd::wait_write); }

Co<absl::Status> WaitHangup(AsyncFd& fd) {
  auto wait = Wait(fd, AsyncFd::wait_error);
  absl::Status status = co_await std::move(wait);
  if (status.ok() && !HungUp(fd)) co_return absl::FailedPreconditionError("urgent data");
  co_return status;
}

bool HungUp(AsyncFd& fd) {
  pollfd polled{.fd = fd.native_handle(), .events = 0, .revents = 0};
  return ::poll(&polled, 1, 0) == 1 && (polled.revents & (POLLHUP | POLLERR)) != 0;
}

absl::Status SetNonBlocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
    return ErrnoStatus(errno, absl::StrCat("set descriptor ", fd, " non-blocking"));
  }
  return absl::OkStatus();
}

Co<absl::StatusOr<UniqueFd>> Accept(AsyncFd& listener) {
  while (true) {
    UniqueFd fd(
        ::accept4(listener.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd.ok()) co_return fd;
    const int error = errno;
    if (IsOfTheConnection(error)) continue;
    if (IsShortage(error)) {
      co_return absl::ResourceExhaustedError(absl::StrCat("accept: ", ::strerror(error)));
    }
    if (error != EAGAIN) {
      co_return absl::FailedPreconditionError(absl::StrCat("accept: ", ::strerror(error)));
    }
    auto wait = WaitReadable(listener);
    absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return status;
  }
}

Co<absl::Status> WriteAll(AsyncFd& fd, std::string data) {
  size_t sent = 0;
  while (sent < data.size()) {
    const ssize_t n =
        ::send(fd.native_handle(), data.data() + sent, data.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) co_return ErrnoStatus(errno, "write");
    auto wait = WaitWritable(fd);
    absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return status;
  }
  co_return absl::OkStatus();
}

}  // namespace magnetar::supervisor
