#include "guest-agent/transport/forward.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "guest-agent/util/log.h"
#include "magnetar/descriptor_message.h"
#include "magnetar/forward.h"
#include "magnetar/mux.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

using Tcp = asio::ip::tcp;
using Descriptor = asio::posix::stream_descriptor;

// Both directions of one connection share it.
struct Pair {
  Pair(const asio::any_io_executor& executor, UniqueFd connection)
      : host(executor, connection.release()), local(executor) {}
  Descriptor host;
  Tcp::socket local;
};

// What has come in small pieces goes on in large ones: each of TCP's costs the guest more than
// its bytes do.
constexpr size_t kChunkBytes = 64 << 10;

// Chunks that one direction may copy before the others get their turn.
constexpr unsigned kTurn = 8;

// Of every connection: it never holds data while a coroutine is suspended.
std::array<char, kChunkBytes> forwarded;

// What was written without waiting; the rest is to be written.
size_t WriteNow(int fd, size_t size) {
  const ssize_t n = ::send(fd, forwarded.data(), size, MSG_NOSIGNAL | MSG_DONTWAIT);
  return n < 0 ? 0 : static_cast<size_t>(n);
}

template <auto From, auto To>
Co<void> Copy(std::shared_ptr<Pair> pair) {
  auto* from = &(pair.get()->*From);
  auto* to = &(pair.get()->*To);
  unsigned copied = 0;
  while (true) {
    const ssize_t n =
        ::recv(from->native_handle(), forwarded.data(), forwarded.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      auto [wait_error] = co_await from->async_wait(std::decay_t<decltype(*from)>::wait_read,
                                                    asio::as_tuple(asio::use_awaitable));
      if (wait_error) break;
      continue;
    }
    if (n <= 0) break;
    const auto size = static_cast<size_t>(n);
    const size_t sent = WriteNow(to->native_handle(), size);
    if (sent == size) {
      if (++copied % kTurn == 0) {
        auto turn = asio::post(from->get_executor(), asio::use_awaitable);
        co_await std::move(turn);
      }
      continue;
    }
    const std::string rest(forwarded.data() + sent, size - sent);
    const auto unwritten = asio::buffer(rest);
    auto [write_error, written] =
        co_await asio::async_write(*to, unwritten, asio::as_tuple(asio::use_awaitable));
    if (write_error) {
      // Whoever sends to it learns that nobody reads.
      ::shutdown(from->native_handle(), SHUT_RD);
      break;
    }
  }
  ::shutdown(to->native_handle(), SHUT_WR);
}

// Lets the multiplexer have the connection, and waits until it is over.
Co<void> Pass(std::shared_ptr<Pair> pair) {
  boost::system::error_code error;
  UniqueFd local(pair->local.release(error));
  if (error) {
    Log(LogLevel::kWarn, "take a forwarded connection: ", error.message());
    co_return;
  }
  const char message[] = {static_cast<char>(kForwardConnected), mux::kPassConnection};
  if (SendWithDescriptor(pair->host.native_handle(), {message, sizeof(message)}, local.get()) !=
      sizeof(message)) {
    // Its client may have left meanwhile.
    if (errno != EPIPE) {
      Log(LogLevel::kWarn, ErrnoStatus(errno, "pass a forwarded connection on").ToString());
    }
    co_return;
  }
  local.reset();
  auto ended = pair->host.async_wait(Descriptor::wait_read, asio::as_tuple(asio::use_awaitable));
  co_await std::move(ended);
}

Co<bool> Dial(std::shared_ptr<Pair> pair, uint16_t port) {
  const asio::ip::address loopbacks[] = {asio::ip::address_v4::loopback(),
                                         asio::ip::address_v6::loopback()};
  for (const asio::ip::address& loopback : loopbacks) {
    const Tcp::endpoint endpoint(loopback, port);
    auto [error] =
        co_await pair->local.async_connect(endpoint, asio::as_tuple(asio::use_awaitable));
    if (!error) co_return true;
    boost::system::error_code ignored;
    pair->local.close(ignored);
  }
  co_return false;
}

}  // namespace

Co<void> ServeForward(UniqueFd connection) {
  using asio::experimental::awaitable_operators::operator&&;
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  auto pair = std::make_shared<Pair>(executor, std::move(connection));
  std::array<uint8_t, kForwardPortBytes> request;
  const auto request_buffer = asio::buffer(request);
  auto [read_error, n] =
      co_await asio::async_read(pair->host, request_buffer, asio::as_tuple(asio::use_awaitable));
  if (read_error) co_return;
  const auto port = static_cast<uint16_t>(request[0] << 8 | request[1]);
  bool connected = false;
  if (port != 0) {
    auto dial = Dial(pair, port);
    connected = co_await std::move(dial);
  }
  if (connected && CarriesDescriptors(pair->host.native_handle())) {
    auto pass = Pass(pair);
    co_await std::move(pass);
    co_return;
  }
  const uint8_t answer = connected ? kForwardConnected : kForwardRefused;
  const auto answer_buffer = asio::buffer(&answer, 1);
  auto [write_error, written] =
      co_await asio::async_write(pair->host, answer_buffer, asio::as_tuple(asio::use_awaitable));
  if (write_error || !connected) co_return;
  auto out = Copy<&Pair::host, &Pair::local>(pair);
  auto in = Copy<&Pair::local, &Pair::host>(pair);
  auto both = std::move(out) && std::move(in);
  co_await std::move(both);
}

Co<void> Forwards::Run(Forwards* self, UniqueFd connection) {
  auto serve = ServeForward(std::move(connection));
  co_await std::move(serve);
  --self->size_;
}

void Forwards::Serve(UniqueFd connection) {
  if (size_ >= max_) {
    Log(LogLevel::kWarn, "too many forwarded connections, one is refused");
    return;
  }
  ++size_;
  asio::co_spawn(executor_, Run(this, std::move(connection)), asio::detached);
}

}  // namespace magnetar::guest
