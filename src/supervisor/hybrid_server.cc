#include "src/supervisor/hybrid_server.h"

#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/supervisor/connect_line.h"
#include "src/supervisor/connection_limit.h"
#include "src/supervisor/relay.h"

namespace magnetar::supervisor {
namespace {

constexpr std::chrono::seconds kConnectLineDeadline{10};

// Reads the line within the deadline.
Co<absl::StatusOr<uint32_t>> ReadPort(AsyncFd& socket) {
  asio::steady_timer deadline(socket.get_executor(), kConnectLineDeadline);
  const int fd = socket.native_handle();
  deadline.async_wait([fd](boost::system::error_code error) {
    // The socket is open as long as the timer is armed.
    if (!error) ::shutdown(fd, SHUT_RDWR);
  });
  auto read = ReadConnectLine(socket);
  absl::StatusOr<uint32_t> port = co_await std::move(read);
  deadline.cancel();
  co_return port;
}

Co<void> Handle(AsyncFd& socket, const GuestAccess& access) {
  auto read = ReadPort(socket);
  absl::StatusOr<uint32_t> port = co_await std::move(read);
  if (!port.ok()) co_return;
  auto ready = access.ready->Wait();
  co_await std::move(ready);
  auto connect = access.link->Connect(*port);
  absl::StatusOr<UniqueFd> guest = co_await std::move(connect);
  if (!guest.ok()) co_return;
  std::string answer = absl::StrCat("OK ", *port, "\n");
  auto write = WriteAll(socket, std::move(answer));
  absl::Status status = co_await std::move(write);
  if (!status.ok()) co_return;
  UniqueFd client(socket.release());
  auto relay = Relay(std::move(client), *std::move(guest));
  co_await std::move(relay);
}

Co<void> HandleOne(UniqueFd client, GuestAccess access, std::shared_ptr<ConnectionLimit> limit) {
  auto executor = co_await asio::this_coro::executor;
  AsyncFd socket(executor, client.release());
  auto handle = Handle(socket, access);
  co_await std::move(handle);
  limit->Release();
}

}  // namespace

Co<void> ServeHybrid(AsyncFd& listener, GuestAccess access) {
  auto executor = co_await asio::this_coro::executor;
  auto limit = std::make_shared<ConnectionLimit>(executor, kMaxConnections);
  while (true) {
    auto slot = limit->Acquire();
    co_await std::move(slot);
    auto accept = Accept(listener);
    absl::StatusOr<UniqueFd> client = co_await std::move(accept);
    if (!client.ok()) co_return;
    access.trim->Activity();
    asio::co_spawn(executor, HandleOne(*std::move(client), access, limit), asio::detached);
  }
}

}  // namespace magnetar::supervisor
