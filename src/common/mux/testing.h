#pragma once

#include <gtest/gtest.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "magnetar/mux.h"
#include "magnetar/ports.h"
#include "src/common/ttrpc/testing.h"

// Both sides of a multiplexer in one thread, and what speaks through its streams.
namespace magnetar::mux {

using magnetar::testing::RunFor;
using magnetar::testing::SocketPair;
using Socket = asio::local::stream_protocol::socket;
inline constexpr uint32_t kPort = 1024;

inline Socket ToSocket(asio::io_context& io, UniqueFd fd) {
  return Socket(io, asio::local::stream_protocol(), fd.release());
}

class MuxTest : public ::testing::Test {
 protected:
  void Start(Limits limits = {}) {
    auto [host_end, guest_end] = SocketPair();
    host_ = Host::Create(std::move(host_end), limits);
    limits.gather_bytes = 64 << 10;
    limits.read_bytes = 256 << 10;
    guest_ = Guest::Create(
        std::move(guest_end),
        [this](uint32_t port, UniqueFd stream) {
          if (port != kPort && port != kForwardPort)
            return absl::UnavailableError("nothing listens");
          accepted_.push_back(std::move(stream));
          return absl::OkStatus();
        },
        limits);
    asio::co_spawn(io_, host_->Run(), [this](const std::exception_ptr&, absl::Status status) {
      host_status_ = std::move(status);
    });
    asio::co_spawn(io_, guest_->Run(), [this](const std::exception_ptr&, absl::Status status) {
      guest_status_ = std::move(status);
    });
  }

  absl::StatusOr<UniqueFd> Connect(uint32_t port = kPort) {
    auto result = RunFor(io_, host_->Connect(port));
    if (!result.has_value()) return absl::InternalError("the test took too long");
    return std::move(*result);
  }

  // Both ends of one stream: the host's and the guest's.
  std::pair<Socket, Socket> Open(uint32_t port = kPort) {
    auto near = Connect(port);
    EXPECT_TRUE(near.ok()) << near.status();
    EXPECT_FALSE(accepted_.empty());
    auto far = std::move(accepted_.back());
    accepted_.pop_back();
    return {ToSocket(io_, *std::move(near)), ToSocket(io_, std::move(far))};
  }

  asio::io_context io_;
  std::shared_ptr<Host> host_;
  std::shared_ptr<Guest> guest_;
  std::vector<UniqueFd> accepted_;
  std::optional<absl::Status> host_status_;
  std::optional<absl::Status> guest_status_;
};

inline std::string Pattern(size_t size, unsigned seed) {
  std::string out(size, '\0');
  uint32_t x = seed * 2654435761u + 1;
  for (char& c : out) {
    x = x * 1664525 + 1013904223;
    c = static_cast<char>(x >> 24);
  }
  return out;
}

inline Co<bool> Write(Socket& socket, std::string data) {
  auto write = asio::async_write(socket, asio::buffer(data), asio::as_tuple(asio::use_awaitable));
  auto [error, n] = co_await std::move(write);
  co_return !error;
}

inline Co<bool> WriteAndShutdown(Socket& socket, std::string data) {
  auto write = Write(socket, std::move(data));
  const bool written = co_await std::move(write);
  boost::system::error_code ignored;
  socket.shutdown(Socket::shutdown_send, ignored);
  co_return written;
}

// So many bytes, or what came before an end.
inline Co<std::string> Read(Socket& socket, size_t size) {
  std::string out(size, '\0');
  auto read = asio::async_read(socket, asio::buffer(out), asio::as_tuple(asio::use_awaitable));
  auto [error, n] = co_await std::move(read);
  out.resize(n);
  co_return out;
}

inline Co<std::string> ReadToEnd(Socket& socket) {
  std::string out;
  std::vector<char> buffer(65536);
  while (true) {
    auto read = socket.async_read_some(asio::buffer(buffer), asio::as_tuple(asio::use_awaitable));
    auto [error, n] = co_await std::move(read);
    if (error) break;
    out.append(buffer.data(), n);
  }
  co_return out;
}

}  // namespace magnetar::mux
