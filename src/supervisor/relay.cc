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
  bool discarding = false;  // one direction, for as long as the other one runs
  Gate done;

  // Wakes whatever waits on either side.
  void Break() {
    ::shutdown(a.native_handle(), SHUT_RDWR);
    ::shutdown(b.native_handle(), SHUT_RDWR);
  }
};

enum class CopyEnd {
  kEof,      // of `from`
  kRefused,  // `to` takes no more
  kBroken,   // `from` is gone
};

// Reads `from` to its end, into nowhere.
Co<void> Discard(AsyncFd& from) {
  while (true) {
    const ssize_t n = ::recv(from.native_handle(), chunk.data(), chunk.size(), 0);
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) co_return;
    // Also after data: a sender that never stops must let the others have their turn.
    auto wait = WaitReadable(from);
    const absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return;
  }
}

// Whom one direction's bytes are shown to, if anybody.
struct Ear {
  RelayListener* listener;
  void (RelayListener::*heard)(std::string_view bytes);
};

Co<CopyEnd> Copy(AsyncFd& from, AsyncFd& to, Ear ear) {
  auto executor = co_await asio::this_coro::executor;
  int copied = 0;
  while (true) {
    const ssize_t n = ::recv(from.native_handle(), chunk.data(), chunk.size(), 0);
    if (n == 0) co_return CopyEnd::kEof;
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) co_return CopyEnd::kBroken;
      copied = 0;
      auto wait = WaitReadable(from);
      const absl::Status status = co_await std::move(wait);
      if (!status.ok()) co_return CopyEnd::kBroken;
      continue;
    }
    const size_t size = static_cast<size_t>(n);
    if (ear.listener != nullptr) (ear.listener->*ear.heard)({chunk.data(), size});
    ssize_t written = ::send(to.native_handle(), chunk.data(), size, MSG_NOSIGNAL);
    if (written < 0) {
      if (errno != EAGAIN && errno != EINTR) co_return CopyEnd::kRefused;
      written = 0;
    }
    if (static_cast<size_t>(written) < size) {
      std::string rest(chunk.data() + written, size - static_cast<size_t>(written));
      auto write = WriteAll(to, std::move(rest));
      const absl::Status status = co_await std::move(write);
      if (!status.ok()) co_return CopyEnd::kRefused;
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

Co<void> Direction(std::shared_ptr<Connection> connection, AsyncFd& from, AsyncFd& to, Ear ear) {
  auto copy = Copy(from, to, ear);
  const CopyEnd end = co_await std::move(copy);
  if (end == CopyEnd::kRefused && connection->running == 2 && !connection->discarding) {
    connection->discarding = true;
    auto discard = Discard(from);
    co_await std::move(discard);
  } else if (end == CopyEnd::kEof && !connection->discarding) {
    ::shutdown(to.native_handle(), SHUT_WR);
  } else {
    // What has been sent still arrives.
    connection->Break();
  }
  if (--connection->running == 0) {
    connection->done.Open();
  } else if (end != CopyEnd::kBroken) {
    auto executor = co_await asio::this_coro::executor;
    asio::co_spawn(executor, BreakAtHangup(connection, from), asio::detached);
  }
}

}  // namespace

Co<void> Relay(UniqueFd a, UniqueFd b, std::unique_ptr<RelayListener> listener) {
  auto executor = co_await asio::this_coro::executor;
  auto connection = std::make_shared<Connection>(executor, std::move(a), std::move(b));
  const Ear from_a = {listener.get(), &RelayListener::FromA};
  const Ear from_b = {listener.get(), &RelayListener::FromB};
  asio::co_spawn(executor, Direction(connection, connection->a, connection->b, from_a),
                 asio::detached);
  asio::co_spawn(executor, Direction(connection, connection->b, connection->a, from_b),
                 asio::detached);
  auto done = connection->done.Wait();
  co_await std::move(done);
  connection->a.close();
  connection->b.close();
}

}  // namespace magnetar::supervisor
