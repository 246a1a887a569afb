// A guest's bytes against the host's side of the mux, with streams being opened.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "magnetar/mux.h"
#include "tests/fuzz/peer.h"

namespace {

namespace asio = boost::asio;
using magnetar::Co;

Co<void> Connect(std::shared_ptr<magnetar::mux::Host> host,
                 std::vector<magnetar::UniqueFd>* streams, int* pending) {
  auto connect = host->Connect(1024);
  auto stream = co_await std::move(connect);
  if (stream.ok()) {
    (void)::send(stream->get(), "hello", 5, MSG_NOSIGNAL);
    streams->push_back(*std::move(stream));
  }
  --*pending;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static asio::io_context io(1);
  if (size == 0) return 0;
  magnetar::mux::Limits limits;
  limits.stream_window_bytes = 1024;
  limits.connection_window_bytes = 65535;
  limits.max_streams = 4;
  auto [near, peer] = magnetar::fuzz::SocketPair();
  auto host = magnetar::mux::Host::Create(std::move(near), limits);
  std::optional<absl::Status> ran;
  asio::co_spawn(io, host->Run(), [&ran](const std::exception_ptr&, absl::Status status) {
    ran = std::move(status);
  });
  std::vector<magnetar::UniqueFd> streams;
  int pending = 3;
  for (int i = 0; i < 3; ++i) asio::co_spawn(io, Connect(host, &streams, &pending), asio::detached);
  magnetar::fuzz::Settle(io);
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  // An empty SETTINGS frame first takes the fuzzer past the door.
  if ((data[0] & 1) != 0) bytes.insert(0, "\0\0\0\4\0\0\0\0\0", 9);
  magnetar::fuzz::Feed(io, peer, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  if ((data[0] & 2) != 0) streams.clear();
  magnetar::fuzz::Settle(io);
  peer.reset();
  magnetar::fuzz::Settle(io);
  if (!ran.has_value() || pending != 0) std::abort();
  return 0;
}
