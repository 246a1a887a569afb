#pragma once

#include <fcntl.h>
#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {

// Two ends of a connection, both non-blocking.
inline std::pair<UniqueFd, UniqueFd> SocketPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// Runs a coroutine to its end.
template <typename T>
T Await(asio::io_context& context, Co<T> coroutine) {
  std::optional<T> result;
  asio::co_spawn(context, std::move(coroutine), [&](std::exception_ptr error, T value) {
    if (error) std::rethrow_exception(error);
    result = std::move(value);
  });
  context.restart();
  while (!result.has_value()) context.run_one();
  return *std::move(result);
}

// Runs the context until `done` says so.
template <typename Done>
void RunUntil(asio::io_context& context, Done done) {
  context.restart();
  while (!done()) context.run_one_for(std::chrono::milliseconds(1));
}

// What can be read now.
inline std::string ReadAvailable(int fd, bool* eof = nullptr) {
  std::string out;
  char buffer[65536];
  while (true) {
    const ssize_t n = ::recv(fd, buffer, sizeof(buffer), 0);
    if (n == 0 && eof != nullptr) *eof = true;
    if (n <= 0) return out;
    out.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace magnetar::supervisor
