#include "magnetar/hybrid_vsock.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"

namespace magnetar {
namespace {

using Socket = asio::local::stream_protocol::socket;

// Takes what has come of the answer's line, and not one byte more: what follows belongs to
// whoever gets the socket. True once the line is whole.
absl::StatusOr<bool> TakeLine(int fd, std::string& line) {
  constexpr size_t kMaxLine = 64;
  std::array<char, kMaxLine> peeked;
  const ssize_t n = ::recv(fd, peeked.data(), peeked.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return false;
    return absl::UnavailableError(ErrnoStatus(errno, "read the answer").message());
  }
  if (n == 0) return absl::UnavailableError("closed without an answer");
  const char* const end = peeked.data() + n;
  const char* const begin = peeked.data();
  const char* const newline = std::find(begin, end, '\n');
  const bool whole = newline != end;
  const auto take = static_cast<size_t>((whole ? newline + 1 : end) - peeked.data());
  const ssize_t taken = ::recv(fd, peeked.data(), take, MSG_DONTWAIT);
  if (taken != static_cast<ssize_t>(take)) return absl::UnavailableError("read the answer");
  line.append(peeked.data(), take);
  if (!whole && line.size() >= kMaxLine) {
    return absl::UnavailableError(absl::StrCat("not an answer: ", absl::CHexEscape(line)));
  }
  return whole;
}

Co<absl::Status> Handshake(std::shared_ptr<Socket> socket, std::string path, uint32_t port) {
  const asio::local::stream_protocol::endpoint endpoint(path);
  auto connecting = socket->async_connect(endpoint, asio::as_tuple(asio::use_awaitable));
  auto [error] = co_await std::move(connecting);
  if (error) co_return absl::UnavailableError(absl::StrCat("connect: ", error.message()));

  const std::string request = absl::StrCat("CONNECT ", port, "\n");
  auto writing =
      asio::async_write(*socket, asio::buffer(request), asio::as_tuple(asio::use_awaitable));
  auto [write_error, written] = co_await std::move(writing);
  if (write_error) co_return absl::UnavailableError(absl::StrCat("send: ", write_error.message()));

  std::string line;
  while (true) {
    auto waiting = socket->async_wait(Socket::wait_read, asio::as_tuple(asio::use_awaitable));
    auto [wait_error] = co_await std::move(waiting);
    if (wait_error) {
      co_return absl::UnavailableError(absl::StrCat("read the answer: ", wait_error.message()));
    }
    const absl::StatusOr<bool> whole = TakeLine(socket->native_handle(), line);
    if (!whole.ok()) co_return whole.status();
    if (*whole) break;
  }
  if (!absl::StartsWith(line, "OK")) {
    co_return absl::UnavailableError(absl::StrCat("refused: ", absl::CHexEscape(line)));
  }
  co_return absl::OkStatus();
}

}  // namespace

Co<absl::StatusOr<UniqueFd>> DialHybridVsock(std::string path, uint32_t port,
                                             std::chrono::nanoseconds timeout) {
  const std::string what = absl::StrCat("dial port ", port, " at ", path);
  if (path.empty() || path.size() >= sizeof(sockaddr_un::sun_path)) {
    co_return absl::InvalidArgumentError(absl::StrCat(what, ": not a socket path"));
  }
  const auto executor = co_await asio::this_coro::executor;
  const auto socket = std::make_shared<Socket>(executor);
  const auto expired = std::make_shared<bool>(false);
  asio::steady_timer timer(executor, timeout);
  timer.async_wait([socket, expired](const boost::system::error_code& error) {
    if (error) return;
    *expired = true;
    boost::system::error_code ignored;
    socket->close(ignored);
  });
  auto handshake = Handshake(socket, path, port);
  const absl::Status status = co_await std::move(handshake);
  if (*expired) co_return absl::DeadlineExceededError(absl::StrCat(what, ": no answer in time"));
  if (!status.ok()) co_return Annotate(status, what);
  boost::system::error_code error;
  UniqueFd fd(socket->release(error));
  if (error) co_return absl::UnavailableError(absl::StrCat(what, ": ", error.message()));
  co_return fd;
}

}  // namespace magnetar
