#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "src/supervisor/relay.h"

namespace magnetar::supervisor {

// Notices a guest that does not end a container: a process in it hangs in a file system, say. A pod
// is stopped only after its containers, so that it would stay for ever. The supervisor asks nobody;
// containerd's own calls tell. It has a Wait pending for as long as it believes in a container, and
// the kubelet asks again for what it has not seen done (containerd 2.1.9,
// internal/cri/server/container_stop.go: SIGKILL, then two minutes of waiting). A SIGKILL for a
// container that got one `patience` ago, while the same end is waited for, is that. A guest
// that tells of ends that are none, or reads no calls, is not noticed. One thread; outlives its
// listeners.
class KillWatch {
 public:
  using Clock = std::chrono::steady_clock;

  // `unkillable`: what to say of it. Patience zero: never.
  KillWatch(std::chrono::seconds patience, std::function<void(const std::string&)> unkillable)
      : patience_(patience), unkillable_(std::move(unkillable)) {}
  KillWatch(const KillWatch&) = delete;
  KillWatch& operator=(const KillWatch&) = delete;

  // For one connection to the task port.
  std::unique_ptr<RelayListener> Listen();

  // containerd waits for the container's end; `Waited` for each.
  void Waits(const std::string& id) { ++waits_[id]; }
  // The end was told.
  void Ended(const std::string& id) { killed_.erase(id); }
  void Waited(const std::string& id);
  void Killed(const std::string& id, Clock::time_point now);

 private:
  class Listener;

  const std::chrono::seconds patience_;
  const std::function<void(const std::string&)> unkillable_;
  std::map<std::string, int> waits_;
  // Containers whose end is waited for: when they got their first SIGKILL.
  std::map<std::string, Clock::time_point> killed_;
};

}  // namespace magnetar::supervisor
