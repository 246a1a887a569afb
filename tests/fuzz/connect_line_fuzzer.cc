// The first line of a hybrid vsock connection. What follows it belongs to the guest, to the byte.
#include <boost/asio/co_spawn.hpp>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "src/supervisor/connect_line.h"
#include "tests/fuzz/peer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace asio = boost::asio;
  namespace supervisor = magnetar::supervisor;
  static asio::io_context io(1);
  auto [near, peer] = magnetar::fuzz::SocketPair();
  supervisor::AsyncFd socket(io, near.release());
  std::optional<absl::StatusOr<uint32_t>> port;
  asio::co_spawn(io, supervisor::ReadConnectLine(socket),
                 [&port](const std::exception_ptr&, absl::StatusOr<uint32_t> result) {
                   port = std::move(result);
                 });
  magnetar::fuzz::Settle(io);
  magnetar::fuzz::Feed(io, peer, data, size);
  peer.reset();
  magnetar::fuzz::Settle(io);
  if (!port.has_value()) std::abort();
  if (!port->ok()) return 0;
  std::string left;
  char buffer[4096];
  ssize_t n;
  while ((n = ::recv(socket.native_handle(), buffer, sizeof(buffer), MSG_DONTWAIT)) > 0) {
    left.append(buffer, static_cast<size_t>(n));
  }
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t newline = input.find('\n');
  if (newline >= supervisor::kMaxConnectLineBytes || left != input.substr(newline + 1)) {
    std::abort();
  }
  return 0;
}
