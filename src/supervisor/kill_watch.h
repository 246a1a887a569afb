#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "src/supervisor/relay.h"

namespace magnetar::supervisor {

// Notices a guest that does not end a container. A pod is stopped only after its containers, so
// that a guest which answers everything and ends nothing, or cannot because a process hangs in a
// file system, would keep its pod for ever. Nobody can be asked who is not under suspicion himself,
// but containerd's own calls tell: the kubelet asks again for what it has not seen done
// (containerd 2.1.9, internal/cri/server/container_stop.go: SIGKILL, then two minutes of waiting).
// A SIGKILL for a container that got one `patience` ago and was not deleted since is that. One
// thread; outlives its listeners.
class KillWatch {
 public:
  using Clock = std::chrono::steady_clock;
  // Containers whose SIGKILL is remembered; then the oldest are forgotten.
  static constexpr size_t kMaxContainers = 1024;

  // `unkillable`: what to say of it. Patience zero: never.
  KillWatch(std::chrono::seconds patience, std::function<void(const std::string&)> unkillable)
      : patience_(patience), unkillable_(std::move(unkillable)) {}
  KillWatch(const KillWatch&) = delete;
  KillWatch& operator=(const KillWatch&) = delete;

  // For one connection to the task port. A guest that reads no calls at all must not keep them
  // from being heard by that.
  std::unique_ptr<RelayListener> Listen();
  void Heard(const std::string& service, const std::string& method, const std::string& payload,
             Clock::time_point now);

 private:
  class Listener;

  void HeardKill(const std::string& id, Clock::time_point now);

  const std::chrono::seconds patience_;
  const std::function<void(const std::string&)> unkillable_;
  // When a container got its first SIGKILL; and in that order.
  std::map<std::string, Clock::time_point> killed_;
  std::deque<std::string> order_;
};

}  // namespace magnetar::supervisor
