#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "magnetar/co.h"
#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/idle_trim.h"

namespace magnetar::supervisor {

// Serves supervisor.sock.
class ControlServer {
 public:
  ControlServer(asio::any_io_executor executor, UniqueFd listener,
                std::shared_ptr<const ttrpc::Services> services, IdleTrim& trim);

  // Until Drain.
  Co<void> Run();

  // Takes no more connections and requests, and returns when every pending call
  // has its answer: at most `grace` for peers that do not read theirs.
  Co<void> Drain(std::chrono::nanoseconds grace);

 private:
  Co<void> Serve(UniqueFd socket);
  bool HasInput();

  asio::any_io_executor executor_;
  AsyncFd listener_;
  IdleTrim& trim_;
  std::shared_ptr<const ttrpc::Services> services_;
  // Copies of the sockets being served, for ending their input.
  std::vector<UniqueFd*> open_;
  Event closed_;
};

}  // namespace magnetar::supervisor
