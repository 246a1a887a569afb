// A client's bytes against a server with small limits.
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cstdint>
#include <cstdlib>
#include <optional>

#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "tests/fuzz/peer.h"

namespace magnetar::ttrpc {
namespace {

Co<absl::Status> EchoStream(CallContext, std::shared_ptr<Stream> stream) {
  while (true) {
    auto receive = stream->Receive();
    auto message = co_await std::move(receive);
    if (!message.ok()) co_return message.status();
    if (!message->has_value()) break;
    auto send = stream->Send(std::move(**message));
    const absl::Status sent = co_await std::move(send);
    if (!sent.ok()) co_return sent;
  }
  auto close = stream->CloseSend();
  co_return co_await std::move(close);
}

// Never reads; ends with the connection.
Co<absl::Status> Deaf(CallContext, std::shared_ptr<Stream>) {
  Event never(co_await asio::this_coro::executor);
  auto wait = never.Wait();
  co_await std::move(wait);
  co_return absl::OkStatus();
}

std::shared_ptr<const Services> MakeServices() {
  auto services = std::make_shared<Services>();
  services->AddUnary("s", "e",
                     [](CallContext, std::string payload) -> Co<absl::StatusOr<std::string>> {
                       co_return payload;
                     });
  services->AddUnary("s", "f", [](CallContext, std::string) -> Co<absl::StatusOr<std::string>> {
    Event never(co_await asio::this_coro::executor);
    auto wait = never.Wait();
    co_await std::move(wait);
    co_return absl::NotFoundError("");
  });
  services->AddStream("s", "t", EchoStream);
  services->AddStream("s", "d", Deaf);
  return services;
}

}  // namespace
}  // namespace magnetar::ttrpc

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace asio = boost::asio;
  static asio::io_context io(1);
  static const auto services = magnetar::ttrpc::MakeServices();
  magnetar::ttrpc::Limits limits;
  limits.max_message_bytes = 4096;
  limits.max_streams = 8;
  limits.max_stream_backlog_bytes = 512;
  limits.max_buffered_bytes = 2048;
  auto [near, peer] = magnetar::fuzz::SocketPair();
  std::optional<absl::Status> served;
  asio::cancellation_signal cancel;
  asio::co_spawn(io, magnetar::ttrpc::ServeConnection(std::move(near), services, limits),
                 asio::bind_cancellation_slot(
                     cancel.slot(), [&served](const std::exception_ptr&, absl::Status status) {
                       served = std::move(status);
                     }));
  magnetar::fuzz::Feed(io, peer, data, size);
  peer.reset();
  magnetar::fuzz::Settle(io);
  // The deaf handlers are still there.
  cancel.emit(asio::cancellation_type::terminal);
  magnetar::fuzz::Settle(io);
  if (!served.has_value()) std::abort();
  return 0;
}
