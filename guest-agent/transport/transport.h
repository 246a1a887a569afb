#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "guest-agent/transport/main_loop_watch.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

struct TransportOptions {
  enum class Kind { kMux, kVsock };
  Kind kind = Kind::kMux;
  // kVsock: the host's port at which to knock once everything listens; 0: no knock.
  uint32_t ready_port = 0;
};

// The way to the host, on a thread of its own that touches no file once it runs:
// it moves bytes and answers heartbeats even when the rest of the agent is stuck
// on a disk. Connections to the other ports are handed to the main loop.
class Transport {
 public:
  // Called on the main loop with a connection to `port` (kTaskPort, kAgentPort, kForwardPort,
  // kOutputPort, kFileSharePort).
  using Connected = std::function<void(uint32_t port, UniqueFd connection)>;
  // Called on the transport's thread when the way to the host is lost for good.
  using Lost = std::function<void(absl::Status)>;

  Transport(const asio::any_io_executor& main_loop, Connected connected, Lost lost);
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  // Listens and tells the host that it does. The thread runs until the process ends.
  absl::Status Start(const TransportOptions& options);

 private:
  absl::Status StartMux();
  absl::Status StartVsock(uint32_t ready_port);
  absl::Status Accept(uint32_t port, UniqueFd connection);

  asio::any_io_executor main_loop_;
  const Connected connected_;
  const Lost lost_;
  MainLoopWatch watch_;
  asio::io_context context_{1};
  std::shared_ptr<const ttrpc::Services> heartbeat_;
  std::thread thread_;
};

}  // namespace magnetar::guest
