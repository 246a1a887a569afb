#include "src/supervisor/hybrid_server.h"

#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/ports.h"
#include "magnetar/streaming/opening.h"
#include "magnetar/streaming/stream_id.h"
#include "src/supervisor/accept_loop.h"
#include "src/supervisor/attempt.h"
#include "src/supervisor/connect_line.h"
#include "src/supervisor/connection_limit.h"
#include "src/supervisor/relay.h"

namespace magnetar::supervisor {
namespace {

constexpr std::chrono::seconds kConnectLineDeadline{10};
// For a guest that runs but does not accept.
constexpr std::chrono::seconds kGuestDeadline{10};

// True: the guest has knocked.
Co<absl::StatusOr<bool>> AwaitKnock(GuestAccess access) {
  auto wait = access.ready_or_ending->Wait();
  co_await std::move(wait);
  co_return access.ready->is_open();
}

bool IsDaemons(uint32_t port) { return port == kAgentPort || port == kHeartbeatPort; }

Co<absl::StatusOr<UniqueFd>> Connect(AsyncFd& socket, const GuestAccess& access, uint32_t port) {
  return Bounded({.limit = kGuestDeadline, .client = &socket}, access.link->Connect(port));
}

Co<absl::Status> Answer(AsyncFd& socket, uint32_t port) {
  return WriteAll(socket, absl::StrCat("OK ", port, "\n"));
}

Co<void> HandlePort(AsyncFd& socket, const GuestAccess& access, uint32_t port) {
  auto connect = Connect(socket, access, port);
  absl::StatusOr<UniqueFd> guest = co_await std::move(connect);
  if (!guest.ok()) co_return;
  auto answer = Answer(socket, port);
  const absl::Status status = co_await std::move(answer);
  if (!status.ok()) co_return;
  UniqueFd client(socket.release());
  auto relay = Relay(std::move(client), *std::move(guest));
  co_await std::move(relay);
}

// What the client begins with; nothing, if it leaves.
Co<streaming::Opening> ReadOpening(AsyncFd& socket) {
  streaming::Opening opening;
  char buffer[streaming::Opening::kMaxBytes];
  while (true) {
    const size_t room = sizeof(buffer) - opening.bytes().size();
    const ssize_t n = ::recv(socket.native_handle(), buffer, room, 0);
    if (n > 0 && opening.Add({buffer, static_cast<size_t>(n)})) co_return opening;
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n == 0 || errno != EAGAIN) co_return streaming::Opening();
    auto wait = WaitReadable(socket);
    const absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return streaming::Opening();
  }
}

bool IsOutput(const streaming::Opening& opening) {
  if (!opening.stream_id().has_value()) return false;
  const auto kind = streaming::ParseStreamId(*opening.stream_id());
  return kind.ok() && *kind != streaming::StdioKind::kStdin;
}

Co<void> HandleTask(AsyncFd& socket, const GuestAccess& access) {
  auto answer = Answer(socket, kTaskPort);
  absl::Status status = co_await std::move(answer);
  if (!status.ok()) co_return;
  auto read = ReadOpening(socket);
  const streaming::Opening opening = co_await std::move(read);
  if (opening.bytes().empty()) co_return;
  if (IsOutput(opening)) {
    UniqueFd client(socket.release());
    auto serve = access.outputs->Serve(std::move(client), opening.bytes());
    co_await std::move(serve);
    co_return;
  }
  auto connect = Connect(socket, access, kTaskPort);
  absl::StatusOr<UniqueFd> connected = co_await std::move(connect);
  if (!connected.ok()) co_return;
  auto executor = co_await asio::this_coro::executor;
  AsyncFd guest(executor, connected->release());
  auto pass = WriteAll(guest, opening.bytes());
  status = co_await std::move(pass);
  if (!status.ok()) co_return;
  UniqueFd client(socket.release());
  UniqueFd far(guest.release());
  std::unique_ptr<RelayListener> listener = access.kills->Listen();
  listener->FromA(opening.bytes());
  auto relay = Relay(std::move(client), std::move(far), std::move(listener));
  co_await std::move(relay);
}

Co<void> Handle(AsyncFd& socket, const GuestAccess& access,
                std::shared_ptr<ConnectionLimit> others) {
  auto read = Bounded({.limit = kConnectLineDeadline}, ReadConnectLine(socket));
  absl::StatusOr<uint32_t> port = co_await std::move(read);
  if (!port.ok()) co_return;
  const bool other = !IsDaemons(*port);
  if (other && !others->TryAcquire()) co_return;
  const absl::Cleanup release = [other, others] {
    if (other) others->Release();
  };
  // A guest may take minutes to boot; who does not want to wait hangs up.
  auto knock = Bounded({.client = &socket}, AwaitKnock(access));
  const absl::StatusOr<bool> ready = co_await std::move(knock);
  if (!ready.ok() || !*ready) co_return;
  auto serve = *port == kTaskPort ? HandleTask(socket, access) : HandlePort(socket, access, *port);
  co_await std::move(serve);
}

Co<void> HandleOne(UniqueFd client, GuestAccess access, std::shared_ptr<ConnectionLimit> limit,
                   std::shared_ptr<ConnectionLimit> others) {
  auto executor = co_await asio::this_coro::executor;
  AsyncFd socket(executor, client.release());
  auto handle = Handle(socket, access, std::move(others));
  co_await std::move(handle);
  socket.close();
  limit->Release();
}

}  // namespace

Co<absl::Status> ServeHybrid(AsyncFd& listener, GuestAccess access, HybridLimits limits) {
  auto executor = co_await asio::this_coro::executor;
  auto limit = std::make_shared<ConnectionLimit>(executor, limits.connections);
  auto others = std::make_shared<ConnectionLimit>(executor, limits.others);
  auto serve = [executor, access, limit, others](UniqueFd client) {
    access.trim->Activity();
    asio::co_spawn(executor, HandleOne(std::move(client), access, limit, others), asio::detached);
  };
  auto loop = AcceptLoop(listener, limit, std::move(serve));
  co_return co_await std::move(loop);
}

}  // namespace magnetar::supervisor
