#pragma once

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "src/supervisor/async_fd.h"
#include "src/supervisor/connection_limit.h"
#include "src/supervisor/idle_trim.h"

namespace magnetar::supervisor {

// The calls that are being served.
class Calls {
 public:
  explicit Calls(const asio::any_io_executor& executor) : changed_(executor) {}

  // One call, from its start to its answer.
  class One {
   public:
    explicit One(std::shared_ptr<Calls> calls) : calls_(std::move(calls)) { ++calls_->running_; }
    ~One() {
      --calls_->running_;
      calls_->changed_.NotifyAll();
    }
    One(const One&) = delete;
    One& operator=(const One&) = delete;

   private:
    const std::shared_ptr<Calls> calls_;
  };

  int running() const { return running_; }
  // Notified when a call has ended.
  Event& changed() { return changed_; }

 private:
  Event changed_;
  int running_ = 0;
};

// Serves supervisor.sock.
class ControlServer {
 public:
  ControlServer(asio::any_io_executor executor, UniqueFd listener,
                std::shared_ptr<const ttrpc::Services> services, std::shared_ptr<Calls> calls,
                IdleTrim& trim);

  // Until Drain; an error if the listener breaks.
  Co<absl::Status> Run();

  // Takes no more connections and requests, and returns when every pending call
  // has its answer: at most `grace` for peers that do not read theirs. Once no call waits for
  // anything but its turn.
  Co<void> Drain(std::chrono::nanoseconds grace);

 private:
  Co<void> Serve(UniqueFd socket);
  bool HasInput();

  asio::any_io_executor executor_;
  AsyncFd listener_;
  IdleTrim& trim_;
  std::shared_ptr<const ttrpc::Services> services_;
  const std::shared_ptr<Calls> calls_;
  std::shared_ptr<ConnectionLimit> limit_;
  // Copies of the sockets being served, for ending their input.
  std::vector<UniqueFd*> open_;
};

}  // namespace magnetar::supervisor
