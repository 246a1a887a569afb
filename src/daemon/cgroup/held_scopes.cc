#include "src/daemon/cgroup/held_scopes.h"

#include <signal.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

absl::StatusOr<pid_t> HeldScopes::Start(const std::string& scope, const std::string& slice) {
  EndHolder(scope);
  SpawnOptions options;
  options.argv = {"/bin/sleep", "infinity"};
  // It outlives a daemon that is stopped or upgraded, as its VM does.
  options.new_session = true;
  auto holder = Spawn(options);
  if (!holder.ok()) return Annotate(holder.status(), "start the holder of a scope");
  const pid_t pid = holder->pid();
  // What the daemon's unit gives the daemon, its children have no claim to. One that has no
  // right to lower a higher score has nothing to reset either.
  (void)WriteExisting(absl::StrCat("/proc/", pid, "/oom_score_adj"), "0");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    holders_[scope] = *std::move(holder);
  }
  absl::Status status = systemd_->Start(scope, slice, pid);
  if (!status.ok()) {
    EndHolder(scope);
    return status;
  }
  return pid;
}

absl::Status HeldScopes::Stop(const std::string& scope) {
  EndHolder(scope);
  return systemd_->Stop(scope);
}

void HeldScopes::EndHolder(const std::string& scope) {
  ChildProcess holder;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = holders_.find(scope);
    if (it == holders_.end()) return;
    holder = std::move(it->second);
    holders_.erase(it);
  }
  // It may have been killed with all others of its cgroup; reaped it is here.
  if (holder.Signal(SIGKILL).ok()) (void)holder.WaitBlocking();
}

}  // namespace magnetar::daemon
