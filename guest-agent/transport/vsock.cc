#include "guest-agent/transport/vsock.h"

#include <sys/socket.h>
// Needs sys/socket.h before it.
#include <linux/vm_sockets.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/util/log.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

constexpr int kBacklog = 128;

// What is accepted in vain stays in line: the listener would be ready again at once.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

bool IsShortage(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

sockaddr_vm Address(uint32_t cid, uint32_t port) {
  sockaddr_vm address = {};
  address.svm_family = AF_VSOCK;
  address.svm_cid = cid;
  address.svm_port = port;
  return address;
}

}  // namespace

absl::StatusOr<UniqueFd> ListenVsock(uint32_t port) {
  UniqueFd listener(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.ok()) return ErrnoStatus(errno, "vsock socket");
  const sockaddr_vm address = Address(VMADDR_CID_ANY, port);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::listen(listener.get(), kBacklog) != 0) {
    return ErrnoStatus(errno, absl::StrCat("listen on vsock port ", port));
  }
  return listener;
}

Co<void> AcceptVsock(UniqueFd listener, std::function<void(UniqueFd)> accept) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  asio::posix::stream_descriptor descriptor(executor, listener.release());
  asio::steady_timer pause(executor);
  bool short_of = false;
  while (true) {
    auto [error] = co_await descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                                                  asio::as_tuple(asio::use_awaitable));
    if (error) co_return;
    sockaddr_vm peer = {};
    socklen_t size = sizeof(peer);
    UniqueFd connection(::accept4(descriptor.native_handle(), reinterpret_cast<sockaddr*>(&peer),
                                  &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection.ok()) {
      if (!IsShortage(errno)) continue;
      if (!short_of) Log(LogLevel::kError, "a connection has to wait errno=", errno);
      short_of = true;
      pause.expires_after(kAcceptPause);
      auto [cancelled] = co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
      if (cancelled) co_return;
      continue;
    }
    short_of = false;
    if (peer.svm_cid != VMADDR_CID_HOST) {
      Log(LogLevel::kWarn, "refused a vsock connection cid=", peer.svm_cid);
      continue;
    }
    accept(std::move(connection));
  }
}

absl::Status KnockVsock(uint32_t port) {
  const UniqueFd socket(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.ok()) return ErrnoStatus(errno, "vsock socket");
  const sockaddr_vm address = Address(VMADDR_CID_HOST, port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("knock at the host's vsock port ", port));
  }
  return absl::OkStatus();
}

}  // namespace magnetar::guest
