#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/child_process.h"
#include "src/daemon/cgroup/systemd_scopes.h"

namespace magnetar::daemon {

// Scopes that exist before their VM: systemd starts none without a process and removes it with
// the last one, so a process that only waits holds each of them until it is stopped. Thread-safe;
// blocks.
class HeldScopes {
 public:
  explicit HeldScopes(std::shared_ptr<SystemdScopes> systemd) : systemd_(std::move(systemd)) {}
  // The holder's pid.
  absl::StatusOr<pid_t> Start(const std::string& scope, const std::string& slice);
  // Also of one that another daemon started; an unknown one is fine.
  absl::Status Stop(const std::string& scope);

 private:
  void EndHolder(const std::string& scope);

  const std::shared_ptr<SystemdScopes> systemd_;
  std::mutex mutex_;
  std::map<std::string, ChildProcess> holders_;
};

}  // namespace magnetar::daemon
