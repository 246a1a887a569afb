#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/record.h"
#include "src/daemon/sandbox/token_bucket.h"

namespace magnetar::daemon {

// Answers what one sandbox's guest asks of its host. The guest is not trusted: it
// names a container and nothing else, and containerd says whether that container
// is its own and what belongs to it.
//
// Everything on the sandbox's strand; one operation per container at a time, a few per sandbox.
class HostRequests : public std::enable_shared_from_this<HostRequests> {
 public:
  HostRequests(const Environment* environment, std::shared_ptr<RecordFile> record,
               const asio::any_io_executor& strand);

  // The VM to which disks are attached; nullptr: none (any more). The one before it lives until
  // nothing uses it.
  void SetVm(std::shared_ptr<vmm::Vm> vm);
  // The VM runs, but its VMM cannot be reached: until the next SetVm, containers wait for a
  // while, and are then refused. What is attached is not taken for gone.
  void LoseVm() { vm_lost_ = true; }

  // Called on the strand when the record's limits of containers have changed.
  void OnLimitsChanged(std::function<void()> handler) { limits_changed_ = std::move(handler); }

  Co<agent::v1::HostResponse> Handle(agent::v1::HostRequest request);

  // Releases what is journalled for containers that the agent does not hold.
  Co<void> Reconcile(std::set<std::string> held);
  // The limits of the containers that are there, which may have changed while nobody listened.
  Co<void> LearnAllLimits();
  // Begins to release again what could not be released. The guest has forgotten these
  // containers, so nobody else asks for it.
  void RetryReleases();

  // The VM has ended, at `ended_at_ns` since the epoch, and its guest tells nothing any more: what
  // its end means for the containers is told in its place (containerd 2.1 publishes nothing for the
  // tasks of a sandbox; 2.4 does so, too: core/runtime/v2/shim_manager.go).
  void TellEnds(int64_t ended_at_ns);

  // No more requests are begun from now on, and what is being prepared is undone.
  void Refuse();
  // Waits until none is in flight; false if one still is after `limit`.
  Co<bool> Drain(std::chrono::nanoseconds limit);

 private:
  // A container that is being worked on; others that want it wait for the end of this.
  class KeyGuard {
   public:
    KeyGuard(std::shared_ptr<HostRequests> owner, std::string key)
        : owner_(std::move(owner)), key_(std::move(key)) {}
    KeyGuard(KeyGuard&&) = default;
    KeyGuard& operator=(KeyGuard&&) = delete;
    ~KeyGuard() {
      if (owner_ != nullptr) owner_->Leave(key_);
    }

   private:
    std::shared_ptr<HostRequests> owner_;
    std::string key_;
  };

  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(agent::v1::PrepareContainer request);
  Co<absl::StatusOr<agent::v1::PreparedContainer>> PrepareLocked(
      agent::v1::PrepareContainer request);
  // `again`: only if it still is to be released.
  Co<absl::Status> Release(std::string container_id, bool again);
  Co<absl::Status> ReleaseLocked(std::string container_id);
  Co<void> Retry();
  // The limits of a container as containerd has them now.
  Co<absl::Status> LearnLimits(std::string container_id);
  // None, if they are empty.
  void SetLimits(ContainerLimits limits);
  // Returns early when the sandbox is being stopped.
  Co<void> Pace(std::chrono::nanoseconds pause);
  // In the order of the calls. An error says why nobody hears of it.
  Co<absl::Status> Publish(uint64_t id, agent::v1::GuestEvent event);
  // `turn`: its place among all.
  Co<absl::Status> PublishInTurn(uint64_t turn, agent::v1::GuestEvent event);
  Co<void> AwaitTurn(uint64_t turn);
  Co<absl::StatusOr<KeyGuard>> Enter(std::string container_id);
  void Leave(const std::string& container_id);
  Co<absl::Status> AwaitVm();
  bool HasSteps(const std::string& container_id) const;
  void Warn(std::string_view message, const std::string& container_id, const absl::Status& status);

  const Environment* env_;
  std::shared_ptr<RecordFile> record_;
  asio::any_io_executor strand_;
  SandboxStorage storage_;
  std::shared_ptr<vmm::Vm> vm_;
  // Earlier ones, which an operation may still use.
  std::vector<std::shared_ptr<vmm::Vm>> retired_;
  bool vm_lost_ = false;
  Event changed_;
  std::set<std::string> busy_;
  // What has been told of a container.
  struct Told {
    bool created = false;
    std::optional<agent::v1::GuestEvent> exit;  // the container's own
  };
  // Containers of which the guest may tell: prepared once and not told to be deleted. What is
  // journalled says less: what a guest no longer holds may be released before its end is told.
  std::map<std::string, Told> told_of_;
  // Containers that nobody holds and whose release has failed.
  std::set<std::string> unreleased_;
  bool retrying_ = false;
  std::function<void()> limits_changed_;
  bool refusing_ = false;
  TokenBucket pace_;
  TokenBucket event_pace_;
  // Events are published one after the other.
  uint64_t next_event_ = 0;
  uint64_t publishing_ = 0;
  uint64_t last_event_ = 0;  // the guest's id of it
  TokenBucket log_pace_;
  uint64_t unlogged_ = 0;
};

}  // namespace magnetar::daemon
