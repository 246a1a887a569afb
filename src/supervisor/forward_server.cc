#include "src/supervisor/forward_server.h"

// These come before the C library's: linux/in.h yields to netinet/in.h.
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "magnetar/forward.h"
#include "magnetar/status.h"
#include "src/supervisor/accept_loop.h"
#include "src/supervisor/attempt.h"
#include "src/supervisor/connection_limit.h"
#include "src/supervisor/relay.h"

namespace magnetar::supervisor {
namespace {

// For the guest to accept the connection and to make its own.
constexpr std::chrono::seconds kConnectDeadline{10};

// Ends a connection so that its peer sees a refusal, a reset, not an empty answer.
void Reset(AsyncFd& socket) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

// The agent's answer (magnetar/forward.h).
Co<absl::Status> ReadVerdict(AsyncFd& guest) {
  while (true) {
    uint8_t verdict = kForwardRefused;
    const ssize_t n = ::recv(guest.native_handle(), &verdict, 1, 0);
    if (n == 1 && verdict == kForwardConnected) co_return absl::OkStatus();
    if (n == 1) co_return absl::UnavailableError("nothing listens at the port in the guest");
    if (n == 0) co_return absl::UnavailableError("the guest closed the connection");
    if (errno == EINTR) continue;
    if (errno != EAGAIN) co_return ErrnoStatus(errno, "recv");
    auto wait = WaitReadable(guest);
    absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return status;
  }
}

// The guest's end of the way to `port`.
Co<absl::StatusOr<UniqueFd>> ConnectToPort(const GuestAccess& access, uint32_t agent_port,
                                           uint16_t port) {
  auto executor = co_await asio::this_coro::executor;
  auto connect = access.link->Connect(agent_port);
  absl::StatusOr<UniqueFd> stream = co_await std::move(connect);
  if (!stream.ok()) co_return stream.status();
  AsyncFd guest(executor, stream->release());
  std::string request = {static_cast<char>(port >> 8), static_cast<char>(port & 0xff)};
  auto write = WriteAll(guest, std::move(request));
  absl::Status status = co_await std::move(write);
  if (!status.ok()) co_return status;
  auto read = ReadVerdict(guest);
  status = co_await std::move(read);
  if (!status.ok()) co_return status;
  co_return UniqueFd(guest.release());
}

Co<void> HandleOne(UniqueFd client, GuestAccess access, uint32_t agent_port,
                   std::shared_ptr<ConnectionLimit> limit) {
  auto executor = co_await asio::this_coro::executor;
  AsyncFd socket(executor, client.release());
  const absl::StatusOr<uint16_t> port = OriginalPort(socket.native_handle());
  if (port.ok() && access.ready->is_open()) {
    auto connect = Bounded({.limit = kConnectDeadline, .client = &socket},
                           ConnectToPort(access, agent_port, *port));
    absl::StatusOr<UniqueFd> guest = co_await std::move(connect);
    if (guest.ok()) {
      UniqueFd owned(socket.release());
      auto relay = Relay(std::move(owned), *std::move(guest));
      co_await std::move(relay);
    }
  }
  if (socket.is_open()) Reset(socket);
  socket.close();
  limit->Release();
}

}  // namespace

absl::StatusOr<uint16_t> OriginalPort(int socket) {
  // Level and option are per family; an IPv4 connection on a dual-stack listener
  // answers the first.
  sockaddr_in v4{};
  socklen_t length = sizeof(v4);
  if (::getsockopt(socket, SOL_IP, SO_ORIGINAL_DST, &v4, &length) == 0) return ntohs(v4.sin_port);
  sockaddr_in6 v6{};
  length = sizeof(v6);
  if (::getsockopt(socket, SOL_IPV6, IP6T_SO_ORIGINAL_DST, &v6, &length) == 0) {
    return ntohs(v6.sin6_port);
  }
  return ErrnoStatus(errno, "original destination of a forwarded connection");
}

Co<absl::Status> ServeForward(AsyncFd& listener, GuestAccess access, uint32_t agent_port) {
  auto executor = co_await asio::this_coro::executor;
  auto limit = std::make_shared<ConnectionLimit>(executor, kMaxForwards);
  auto serve = [executor, access, agent_port, limit](UniqueFd client) {
    asio::co_spawn(executor, HandleOne(std::move(client), access, agent_port, limit),
                   asio::detached);
  };
  auto loop = AcceptLoop(listener, limit, std::move(serve));
  co_return co_await std::move(loop);
}

}  // namespace magnetar::supervisor
