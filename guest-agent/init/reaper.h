#pragma once

#include <sys/types.h>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/signal_set.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>

#include "magnetar/co.h"

namespace magnetar::guest {

// How a process ended.
struct Exit {
  // As a shell tells it: the status, or 128 + the signal.
  uint32_t status = 0;
  // Nanoseconds since the epoch.
  int64_t at_ns = 0;
};

// Reaps every child of this process, the adopted ones of PID 1 included, and
// tells who waits for one. One thread; must be the only waiter of the process.
class Reaper {
 public:
  explicit Reaper(const asio::any_io_executor& executor);
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  // Begins to consume SIGCHLD.
  void Start();
  void Stop();

  // While a window is open the ends of unwatched processes are kept: a process
  // that crun leaves behind may end before its pid is known here. Take one
  // before the start of whatever will leave a process, let go after Watch().
  class Window {
   public:
    explicit Window(Reaper& reaper) : reaper_(&reaper) { ++reaper.windows_; }
    Window(Window&& other) noexcept : reaper_(std::exchange(other.reaper_, nullptr)) {}
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;
    ~Window() {
      if (reaper_ != nullptr) reaper_->CloseWindow();
    }

   private:
    Reaper* reaper_;
  };

  // Calls back once when `pid` has ended, from the event loop, never from here.
  void Watch(pid_t pid, std::function<void(Exit)> done);
  // Waits for a child started just now, without leaving the event loop in between.
  Co<Exit> Wait(pid_t pid);

 private:
  void Listen();
  void Reap();
  void CloseWindow();

  asio::any_io_executor executor_;
  asio::signal_set signals_;
  std::unordered_map<pid_t, std::function<void(Exit)>> watched_;
  // Bounded by the number of pids; empty when no window is open.
  std::unordered_map<pid_t, Exit> early_;
  int windows_ = 0;
};

}  // namespace magnetar::guest
