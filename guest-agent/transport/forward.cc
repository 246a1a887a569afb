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
#include <boost/asio/read.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cstdint>
#include <memory>
#include <utility>

#include "guest-agent/util/log.h"
#include "magnetar/forward.h"

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

constexpr size_t kChunkBytes = 16 << 10;

template <auto From, auto To>
Co<void> Copy(std::shared_ptr<Pair> pair) {
  auto* from = &(pair.get()->*From);
  auto* to = &(pair.get()->*To);
  std::array<char, kChunkBytes> chunk;
  while (true) {
    const auto buffer = asio::buffer(chunk);
    auto [read_error, n] =
        co_await from->async_read_some(buffer, asio::as_tuple(asio::use_awaitable));
    if (read_error) break;
    const auto filled = asio::buffer(chunk.data(), n);
    auto [write_error, written] =
        co_await asio::async_write(*to, filled, asio::as_tuple(asio::use_awaitable));
    if (write_error) {
      // Whoever sends to it learns that nobody reads.
      ::shutdown(from->native_handle(), SHUT_RD);
      break;
    }
  }
  ::shutdown(to->native_handle(), SHUT_WR);
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
