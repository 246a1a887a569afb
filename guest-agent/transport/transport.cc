#include "guest-agent/transport/transport.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/transport/heartbeat.h"
#include "guest-agent/transport/mux_port.h"
#include "guest-agent/transport/vsock.h"
#include "guest-agent/util/log.h"
#include "magnetar/mux.h"
#include "magnetar/ports.h"

namespace magnetar::guest {
namespace {

// Of what the host sends: an emulated guest pays more for each turn of the process that gets it
// than for the copy, and the VMM delivers no more than 4 KiB at a time.
constexpr mux::Limits kMuxLimits = {.gather_bytes = 64 << 10, .read_bytes = 256 << 10};

// Beats come one at a time; a few connections of daemons that come and go.
ttrpc::Limits HeartbeatLimits() {
  ttrpc::Limits limits;
  limits.max_message_bytes = 4096;
  limits.max_streams = 8;
  limits.max_stream_backlog_bytes = 4096;
  return limits;
}

Co<void> ServeHeartbeat(UniqueFd connection, std::shared_ptr<const ttrpc::Services> services) {
  auto serve =
      ttrpc::ServeConnection(std::move(connection), std::move(services), HeartbeatLimits());
  const absl::Status status = co_await std::move(serve);
  static_cast<void>(status);
}

Co<void> RunMux(std::shared_ptr<mux::Guest> guest, Transport::Lost lost) {
  auto run = guest->Run();
  absl::Status status = co_await std::move(run);
  lost(status.ok() ? absl::UnavailableError("the host closed the channel") : status);
}

}  // namespace

Transport::Transport(const asio::any_io_executor& main_loop, Connected connected, Lost lost)
    : main_loop_(main_loop),
      connected_(std::move(connected)),
      lost_(std::move(lost)),
      watch_(main_loop),
      heartbeat_(MakeHeartbeatServices(watch_)) {}

absl::Status Transport::Accept(uint32_t port, UniqueFd connection) {
  switch (port) {
    case kHeartbeatPort:
      asio::co_spawn(context_, ServeHeartbeat(std::move(connection), heartbeat_), asio::detached);
      return absl::OkStatus();
    case kTaskPort:
    case kAgentPort:
    case kForwardPort:
    case kOutputPort:
    case kFileSharePort:
      asio::post(main_loop_, [this, port, fd = std::make_shared<UniqueFd>(std::move(connection))] {
        connected_(port, std::move(*fd));
      });
      return absl::OkStatus();
    default:
      return absl::UnavailableError(absl::StrCat("nothing listens on port ", port));
  }
}

absl::Status Transport::StartMux() {
  absl::StatusOr<UniqueFd> channel = OpenMuxPort();
  if (!channel.ok()) return channel.status();
  auto accept = [this](uint32_t port, UniqueFd stream) { return Accept(port, std::move(stream)); };
  auto guest = mux::Guest::Create(*std::move(channel), accept, kMuxLimits);
  asio::co_spawn(context_, RunMux(std::move(guest), lost_), asio::detached);
  return absl::OkStatus();
}

absl::Status Transport::StartVsock(uint32_t ready_port) {
  for (const uint32_t port :
       {kTaskPort, kAgentPort, kForwardPort, kHeartbeatPort, kOutputPort, kFileSharePort}) {
    absl::StatusOr<UniqueFd> listener = ListenVsock(port);
    if (!listener.ok()) return listener.status();
    auto accept = [this, port](UniqueFd connection) {
      const absl::Status status = Accept(port, std::move(connection));
      static_cast<void>(status);
    };
    asio::co_spawn(context_, AcceptVsock(*std::move(listener), accept), asio::detached);
  }
  return ready_port == 0 ? absl::OkStatus() : KnockVsock(ready_port);
}

absl::Status Transport::Start(const TransportOptions& options) {
  const absl::Status status =
      options.kind == TransportOptions::Kind::kMux ? StartMux() : StartVsock(options.ready_port);
  if (!status.ok()) return status;
  thread_ = std::thread([this] {
    const auto work = asio::make_work_guard(context_);
    context_.run();
  });
  return absl::OkStatus();
}

}  // namespace magnetar::guest
