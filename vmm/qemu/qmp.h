#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::vmm::qemu {

// A QMP connection: commands may overlap, events come in between.
//
// Threads: one executor, the caller's of Connect. Errors: UNAVAILABLE once the connection is
// gone; DEADLINE_EXCEEDED if QEMU leaves a command unanswered; else QEMU's own, as
// FAILED_PRECONDITION, NOT_FOUND or UNIMPLEMENTED, with the command's name in front.
class QmpClient {
 public:
  virtual ~QmpClient() = default;

  struct Handlers {
    std::function<void(const std::string& event, const nlohmann::json& data)> event;
    // Called once, when the connection has ended and every command with it.
    std::function<void()> closed;
  };

  // Connects, and negotiates. Handlers are called from then on: events may come with the last
  // answer of the negotiation.
  static Co<absl::StatusOr<std::shared_ptr<QmpClient>>> Connect(std::string path,
                                                                std::chrono::nanoseconds timeout,
                                                                Handlers handlers);

  // `arguments` may be null. `fd` is sent along if it is one, and closed here.
  virtual Co<absl::StatusOr<nlohmann::json>> Execute(std::string command, nlohmann::json arguments,
                                                     UniqueFd fd) = 0;

  virtual void Close() = 0;
};

}  // namespace magnetar::vmm::qemu
