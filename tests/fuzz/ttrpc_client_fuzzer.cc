// A server's bytes against a client with a call and two streams in flight.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cstdint>
#include <cstdlib>

#include "magnetar/ttrpc/ttrpc.h"
#include "tests/fuzz/peer.h"

namespace magnetar::ttrpc {
namespace {

Co<void> Call(std::shared_ptr<Client> client, int* pending) {
  auto call = client->CallRaw("s", "m", "p", {}, {});
  (void)co_await std::move(call);
  --*pending;
}

Co<void> ReadStream(std::shared_ptr<Client> client, bool deaf, int* pending) {
  auto open = client->OpenStream("s", "t");
  auto stream = co_await std::move(open);
  if (deaf) {
    auto gone = client->Closed();
    co_await std::move(gone);
  }
  while (stream.ok()) {
    auto receive = (*stream)->Receive();
    auto message = co_await std::move(receive);
    if (!message.ok() || !message->has_value()) break;
    auto send = (*stream)->Send(std::move(**message));
    (void)co_await std::move(send);
  }
  --*pending;
}

}  // namespace
}  // namespace magnetar::ttrpc

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace asio = boost::asio;
  static asio::io_context io(1);
  magnetar::ttrpc::Limits limits;
  limits.max_message_bytes = 4096;
  limits.max_stream_backlog_bytes = 512;
  limits.max_buffered_bytes = 2048;
  auto [near, peer] = magnetar::fuzz::SocketPair();
  auto client = magnetar::ttrpc::Client::Create(io.get_executor(), std::move(near), limits);
  int pending = 3;
  asio::co_spawn(io, magnetar::ttrpc::Call(client, &pending), asio::detached);               // 1
  asio::co_spawn(io, magnetar::ttrpc::ReadStream(client, false, &pending), asio::detached);  // 3
  asio::co_spawn(io, magnetar::ttrpc::ReadStream(client, true, &pending), asio::detached);   // 5
  magnetar::fuzz::Settle(io);
  magnetar::fuzz::Feed(io, peer, data, size);
  peer.reset();
  magnetar::fuzz::Settle(io);
  client.reset();
  magnetar::fuzz::Settle(io);
  if (pending != 0) std::abort();
  return 0;
}
