#pragma once

#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"
#include "src/common/ttrpc/frame.h"

// For tests of what speaks over stream sockets.
namespace magnetar::testing {

inline std::pair<UniqueFd, UniqueFd> SocketPair() {
  int fds[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// However busy the machine is, only what hangs takes this long.
inline constexpr std::chrono::seconds kHang{100};

// Runs a coroutine to its end, for at most `limit`; nullopt if it takes longer.
template <typename T>
std::optional<T> RunFor(asio::io_context& io, Co<T> coroutine,
                        std::chrono::steady_clock::duration limit = kHang) {
  std::optional<T> result;
  std::exception_ptr thrown;
  asio::co_spawn(io, std::move(coroutine), [&](std::exception_ptr e, T value) {
    thrown = e;
    if (!e) result.emplace(std::move(value));
    io.stop();
  });
  io.restart();
  io.run_for(limit);
  if (thrown) std::rethrow_exception(thrown);
  return result;
}

// One frame as it looks on the wire.
inline std::string WireFrame(uint32_t stream_id, ttrpc::FrameType type, uint8_t flags,
                             const std::string& body) {
  const auto header =
      ttrpc::EncodeHeader({static_cast<uint32_t>(body.size()), stream_id, type, flags});
  return std::string(header.data(), header.size()) + body;
}

}  // namespace magnetar::testing
