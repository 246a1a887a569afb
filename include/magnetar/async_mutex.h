#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <utility>

#include "magnetar/co.h"
#include "magnetar/event.h"

namespace magnetar {

// Mutual exclusion of coroutines of one strand.
class AsyncMutex {
 public:
  explicit AsyncMutex(const asio::any_io_executor& executor) : changed_(executor) {}

  class Guard {
   public:
    Guard() = default;
    explicit Guard(AsyncMutex* mutex) : mutex_(mutex) {}
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&& other) noexcept {
      std::swap(mutex_, other.mutex_);
      return *this;
    }
    ~Guard() {
      if (mutex_ != nullptr) mutex_->Unlock();
    }

   private:
    AsyncMutex* mutex_ = nullptr;
  };

  Co<Guard> Lock() {
    while (locked_) {
      auto wait = changed_.Wait();
      co_await std::move(wait);
    }
    locked_ = true;
    co_return Guard(this);
  }

 private:
  void Unlock() {
    locked_ = false;
    changed_.NotifyAll();
  }

  Event changed_;
  bool locked_ = false;
};

}  // namespace magnetar
