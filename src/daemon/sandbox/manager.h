#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/sandbox.h"

namespace magnetar::daemon {

// All sandboxes of this daemon. Any thread.
class SandboxManager {
 public:
  explicit SandboxManager(const Environment* environment) : env_(environment) {}

  // Writes the record; atomic. ALREADY_EXISTS for an id that is in use.
  Co<absl::Status> Create(PodRequest pod, std::string containerd_namespace);

  // NOT_FOUND, with the id; INVALID_ARGUMENT for one that cannot be.
  absl::StatusOr<std::shared_ptr<Sandbox>> Find(const std::string& id) const;
  std::vector<std::shared_ptr<Sandbox>> All() const;

  // Finds the sandboxes of earlier daemons in the run directory. Afterwards every RPC can be
  // answered; RecoverGuests then talks to the guests and returns when all have answered or
  // have been killed.
  // What cannot be read now is left alone. An error: the run directory cannot be read.
  Co<absl::Status> Recover();
  Co<void> RecoverGuests();

  // Shuts down what containerd, answering, does not know, if it is old enough, and what belongs
  // to none of its namespaces.
  Co<void> SweepOrphans();

  // At the daemon's end: refuses Create and Start with UNAVAILABLE from now on, answers every
  // wait and gives up starts in flight. Returns when no operation is in flight, but after
  // `limit` in any case: what is cut off is found again by its record.
  Co<void> DetachAll(std::chrono::nanoseconds limit);

 private:
  std::shared_ptr<Sandbox> Add(std::shared_ptr<RecordFile> record);
  Co<void> ShutDownOrphan(std::shared_ptr<Sandbox> sandbox);

  const Environment* env_;
  std::atomic<bool> ending_{false};
  mutable std::mutex mutex_;
  // nullptr: an id whose Create is under way.
  std::map<std::string, std::shared_ptr<Sandbox>> sandboxes_;
};

}  // namespace magnetar::daemon
