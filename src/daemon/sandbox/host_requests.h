#pragma once

#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/record.h"

namespace magnetar::daemon {

// Answers what one sandbox's guest asks of its host. The guest is not trusted: it
// names a container and nothing else, and containerd says whether that container
// is its own and what belongs to it.
//
// Everything on the sandbox's strand; one operation per container at a time.
class HostRequests : public std::enable_shared_from_this<HostRequests> {
 public:
  HostRequests(const Environment* environment, std::shared_ptr<RecordFile> record,
               const asio::any_io_executor& strand);

  // The VM to which disks are attached; nullptr: none (any more).
  void set_vm(vmm::Vm* vm) { storage_.vm = vm; }

  Co<agent::v1::HostResponse> Handle(agent::v1::HostRequest request);

  // Releases what is journalled for containers that the agent does not hold.
  Co<void> Reconcile(std::set<std::string> held);

  // No more requests are begun from now on.
  void Refuse() { refusing_ = true; }
  // Completes when none is in flight.
  Co<void> Drain();

 private:
  class KeyGuard;

  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(agent::v1::PrepareContainer request);
  Co<absl::StatusOr<agent::v1::PreparedContainer>> PrepareLocked(
      agent::v1::PrepareContainer request);
  Co<absl::Status> Release(std::string container_id);
  Co<void> Publish(agent::v1::GuestEvent event);
  Co<void> Enter(std::string container_id);
  void Leave(const std::string& container_id);

  const Environment* env_;
  std::shared_ptr<RecordFile> record_;
  SandboxStorage storage_;
  Event changed_;
  std::set<std::string> busy_;
  bool refusing_ = false;
};

}  // namespace magnetar::daemon
