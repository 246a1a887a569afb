#pragma once

#include "magnetar/co.h"
#include "magnetar/event.h"

namespace magnetar::supervisor {

// Something that happens once and that many may wait for. One thread.
class Gate {
 public:
  explicit Gate(const asio::any_io_executor& executor) : opened_(executor) {}

  bool is_open() const { return open_; }

  void Open() {
    open_ = true;
    opened_.NotifyAll();
  }

  // Returns at once when open.
  Co<void> Wait() {
    while (!open_) {
      auto wait = opened_.Wait();
      co_await std::move(wait);
    }
  }

 private:
  Event opened_;
  bool open_ = false;
};

}  // namespace magnetar::supervisor
