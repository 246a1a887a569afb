#pragma once

#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

// The other end of a connection, played by the fuzzer's bytes.
namespace magnetar::fuzz {

inline std::pair<UniqueFd, UniqueFd> SocketPair() {
  int fds[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// Runs everything that can run without waiting.
inline void Settle(asio::io_context& io) {
  io.restart();
  while (io.poll() > 0) {
  }
}

// Sends the bytes in two parts, so that frames are cut, and swallows the answers.
inline void Feed(asio::io_context& io, const UniqueFd& peer, const uint8_t* data, size_t size) {
  char sink[4096];
  size_t at = 0;
  while (at < size) {
    const size_t part = at == 0 ? (size + 1) / 2 : size - at;
    const ssize_t n = ::send(peer.get(), data + at, part, MSG_NOSIGNAL);
    Settle(io);
    while (::recv(peer.get(), sink, sizeof(sink), MSG_DONTWAIT) > 0) {
    }
    if (n <= 0) return;
    at += static_cast<size_t>(n);
  }
}

}  // namespace magnetar::fuzz
