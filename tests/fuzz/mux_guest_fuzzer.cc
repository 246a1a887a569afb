// A host's bytes against the guest's side of the mux.
#include <boost/asio/co_spawn.hpp>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "magnetar/descriptor_message.h"
#include "magnetar/mux.h"
#include "magnetar/ports.h"
#include "tests/fuzz/peer.h"

namespace {

using magnetar::UniqueFd;

// The ports of this guest; any other is open and says hello.
constexpr uint32_t kRefused = 1;
constexpr uint32_t kPassesSource = 2;

constexpr char kConnectionMessage[] = {'!', magnetar::mux::kPassConnection};
constexpr std::string_view kConnection(kConnectionMessage, sizeof(kConnectionMessage));
constexpr std::string_view kSource(&magnetar::mux::kPassSource, 1);

// Has something of its own used in the stream's place, as a server's socket or a process's output
// is, and keeps its other end.
void Pass(const UniqueFd& stream, std::string_view message, std::vector<UniqueFd>& kept) {
  auto [passed, other] = magnetar::fuzz::SocketPair();
  (void)::send(other.get(), "hello", 5, MSG_NOSIGNAL);
  (void)magnetar::SendWithDescriptor(stream.get(), message, passed.get());
  kept.push_back(std::move(other));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace asio = boost::asio;
  static asio::io_context io(1);
  if (size == 0) return 0;
  magnetar::mux::Limits limits;
  limits.stream_window_bytes = 1024;
  limits.connection_window_bytes = 65535;
  limits.max_streams = 4;
  limits.reserved_streams = 1;
  limits.wide_window_bytes = 4096;
  limits.max_wide_streams = 1;
  if ((data[0] & 4) != 0) limits.gather_bytes = 512;
  auto [near, peer] = magnetar::fuzz::SocketPair();
  std::vector<UniqueFd> streams;
  auto accept = [&streams](uint32_t port, UniqueFd stream) {
    if (port == kRefused) return absl::UnavailableError("nothing listens");
    (void)::send(stream.get(), "hello", 5, MSG_NOSIGNAL);
    if (port == magnetar::kForwardPort) Pass(stream, kConnection, streams);
    if (port == kPassesSource) Pass(stream, kSource, streams);
    streams.push_back(std::move(stream));
    return absl::OkStatus();
  };
  auto guest = magnetar::mux::Guest::Create(std::move(near), accept, limits);
  std::optional<absl::Status> ran;
  asio::co_spawn(io, guest->Run(), [&ran](const std::exception_ptr&, absl::Status status) {
    ran = std::move(status);
  });
  magnetar::fuzz::Settle(io);
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  // What a client begins with, and an empty SETTINGS frame, take the fuzzer past the door.
  if ((data[0] & 1) != 0) {
    bytes.insert(0, std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33));
  }
  magnetar::fuzz::Feed(io, peer, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  if ((data[0] & 2) != 0) streams.clear();
  magnetar::fuzz::Settle(io);
  peer.reset();
  magnetar::fuzz::Settle(io);
  if (!ran.has_value()) std::abort();
  return 0;
}
