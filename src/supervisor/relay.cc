#include "src/supervisor/relay.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <memory>
#include <string>

#include "src/supervisor/async_fd.h"
#include "src/supervisor/gate.h"

namespace magnetar::supervisor {
namespace {

constexpr size_t kChunkBytes = 64 << 10;
// Chunks that one direction may copy before the others get their turn.
constexpr int kTurn = 8;

// Shared by every relay: it never holds data while a coroutine is suspended.
std::array<char, kChunkBytes> chunk;

struct Connection {
  explicit Connection(asio::any_io_executor executor, UniqueFd a, UniqueFd b)
      : a(executor, a.release()), b(executor, b.release()), done(executor) {}
  AsyncFd a, b;
  int running = 2;
  Gate done;

  // Wakes whatever waits on either side.
  void Break() {
    ::shutdown(a.native_handle(), SHUT_RDWR);
    ::shutdown(b.native_handle(), SHUT_RDWR);
  }
};

// OK at the end of `from`.
Co<absl::Status> Copy(AsyncFd& from, AsyncFd& to) {
  auto executor = co_await asio::this_coro::executor;
  int copied = 0;
  while (true) {
    const ssize_t n = ::recv(from.native_handle(), chunk.data(), chunk.size(), 0);
    if (n == 0) co_return absl::OkStatus();
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) co_return absl::ErrnoToStatus(errno, "recv");
      copied = 0;
      auto wait = WaitReadable(from);
      absl::Status status = co_await std::move(wait);
      if (!status.ok()) co_return status;
      continue;
    }
    const size_t size = static_cast<size_t>(n);
    ssize_t written = ::send(to.native_handle(), chunk.data(), size, MSG_NOSIGNAL);
    if (written < 0) {
      if (errno != EAGAIN && errno != EINTR) co_return absl::ErrnoToStatus(errno, "send");
      written = 0;
    }
    if (static_cast<size_t>(written) < size) {
      std::string rest(chunk.data() + written, size - static_cast<size_t>(written));
      auto write = WriteAll(to, std::move(rest));
      absl::Status status = co_await std::move(write);
      if (!status.ok()) co_return status;
    }
    if (++copied == kTurn) {
      copied = 0;
      auto turn = asio::post(executor, asio::use_awaitable);
      co_await std::move(turn);
    }
  }
}

// Ends the connection if `closed`, whose sending side has ended, goes away altogether.
Co<void> BreakAtHangup(std::shared_ptr<Connection> connection, AsyncFd& closed) {
  auto hangup = WaitHangup(closed);
  absl::Status status = co_await std::move(hangup);
  if (status.ok()) connection->Break();
}

Co<void> Direction(std::shared_ptr<Connection> connection, AsyncFd& from, AsyncFd& to) {
  auto copy = Copy(from, to);
  absl::Status status = co_await std::move(copy);
  if (!status.ok()) {
    connection->Break();
  } else {
    ::shutdown(to.native_handle(), SHUT_WR);
  }
  if (--connection->running == 0) {
    connection->done.Open();
  } else if (status.ok()) {
    auto executor = co_await asio::this_coro::executor;
    asio::co_spawn(executor, BreakAtHangup(connection, from), asio::detached);
  }
}

}  // namespace

Co<void> Relay(UniqueFd a, UniqueFd b) {
  auto executor = co_await asio::this_coro::executor;
  auto connection = std::make_shared<Connection>(executor, std::move(a), std::move(b));
  asio::co_spawn(executor, Direction(connection, connection->a, connection->b), asio::detached);
  asio::co_spawn(executor, Direction(connection, connection->b, connection->a), asio::detached);
  auto done = connection->done.Wait();
  co_await std::move(done);
  connection->a.close();
  connection->b.close();
}

}  // namespace magnetar::supervisor
