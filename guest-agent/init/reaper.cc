#include "guest-agent/init/reaper.h"

#include <sys/wait.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <utility>

#include "guest-agent/util/log.h"
#include "guest-agent/util/notifier.h"

namespace magnetar::guest {
namespace {

Exit ToExit(const siginfo_t& info) {
  Exit exit;
  exit.status = static_cast<uint32_t>(info.si_status);
  if (info.si_code != CLD_EXITED) exit.status += 128;
  timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  exit.at_ns = int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
  return exit;
}

bool IsLiveChild(pid_t pid) {
  siginfo_t info = {};
  return ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

}  // namespace

Reaper::Reaper(const asio::any_io_executor& executor)
    : executor_(executor), signals_(executor, SIGCHLD) {}

void Reaper::Start() {
  Listen();
  // Children that ended before the signal was handled raise none.
  asio::post(executor_, [this] { Reap(); });
}

void Reaper::Stop() { signals_.cancel(); }

void Reaper::Listen() {
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (error) return;
    Listen();
    Reap();
  });
}

void Reaper::Reap() {
  while (true) {
    siginfo_t info = {};
    if (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG) != 0) {
      if (errno == EINTR) continue;
      if (errno != ECHILD) Log(LogLevel::kError, "waitid failed errno=", errno);
      return;
    }
    if (info.si_pid == 0) return;
    const Exit exit = ToExit(info);
    const auto watched = watched_.find(info.si_pid);
    if (watched != watched_.end()) {
      auto done = std::move(watched->second);
      watched_.erase(watched);
      done(exit);
    } else if (windows_ > 0) {
      early_[info.si_pid] = exit;
    }
  }
}

void Reaper::CloseWindow() {
  if (--windows_ == 0) early_.clear();
}

void Reaper::Watch(pid_t pid, std::function<void(Exit)> done) {
  auto early = early_.find(pid);
  // The end of an earlier bearer of the pid is not this one's.
  if (early != early_.end() && IsLiveChild(pid)) early = early_.end();
  if (early == early_.end()) {
    watched_[pid] = std::move(done);
    return;
  }
  const Exit exit = early->second;
  early_.erase(early);
  asio::post(executor_, [done = std::move(done), exit] { done(exit); });
}

Co<Exit> Reaper::Wait(pid_t pid) {
  struct State {
    explicit State(const asio::any_io_executor& executor) : ended(executor) {}
    Event ended;
    Exit exit;
  };
  auto state = std::make_shared<State>(executor_);
  Watch(pid, [state](Exit exit) {
    state->exit = exit;
    state->ended.Set();
  });
  while (!state->ended.IsSet()) co_await state->ended.Wait();
  co_return state->exit;
}

}  // namespace magnetar::guest
