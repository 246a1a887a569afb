#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// What a client may take of the daemon.
struct HttpLimits {
  int connections = 16;
  size_t header_bytes = 8 << 10;
  // From when a connection is made, or has had its last answer, to the end of the next request's
  // header.
  std::chrono::milliseconds request{30000};
  std::chrono::milliseconds answer{10000};
};

// GET and HEAD /metrics over HTTP/1.1, and an error for everything else. One text is made at a
// time, on a thread of the server's own: whatever it waits for, the daemon's other work goes on.
// A connection too many is told 503 and closed, a request beyond a limit closes its own.
class HttpServer {
 public:
  // `listener`: a non-blocking socket that listens. `executor` is an io_context's; `text` may
  // block.
  HttpServer(const asio::any_io_executor& executor, UniqueFd listener,
             std::function<std::string()> text, HttpLimits limits = HttpLimits());
  // Closes everything; waits for a text that is being made.
  ~HttpServer();

 private:
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace magnetar::daemon
