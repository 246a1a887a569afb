#pragma once

#include <boost/asio/strand.hpp>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cgroups/v2_metrics.pb.h"
#include "magnetar/async_mutex.h"
#include "magnetar/co.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/machine.h"
#include "src/daemon/sandbox/pod_request.h"
#include "src/daemon/sandbox/record.h"

namespace magnetar::daemon {

// Created -> Starting -> Ready -> Stopping -> NotReady -> gone. A failed Start goes
// from Starting to gone; a VM that dies goes from Ready to NotReady.
enum class SandboxState { kCreated, kStarting, kReady, kStopping, kNotReady, kGone };

std::string_view SandboxStateName(SandboxState state);

// What others see of a sandbox; immutable.
struct SandboxSnapshot {
  std::string id;
  std::string containerd_namespace;
  SandboxState state = SandboxState::kCreated;
  uint32_t pid = 0;  // the VMM's, while it runs
  std::string address;
  int64_t created_at_ns = 0;
  int64_t exited_at_ns = 0;  // 0 while it is not over
  uint32_t exit_status = 0;
};

struct SandboxExit {
  uint32_t status = 0;
  int64_t exited_at_ns = 0;
};

// One sandbox: the order of its operations. Coroutines run on strand(); the
// methods that say so may be called from any thread.
class Sandbox : public std::enable_shared_from_this<Sandbox> {
 public:
  using Strand = asio::strand<asio::io_context::executor_type>;
  using WaitHandler = std::function<void(absl::StatusOr<SandboxExit>)>;

  // A new one, its record already written, or one that is found again.
  Sandbox(const Environment* environment, std::shared_ptr<RecordFile> record);

  const Strand& strand() const { return strand_; }
  const std::string& id() const { return id_; }
  // Any thread.
  std::shared_ptr<const SandboxSnapshot> snapshot() const;
  Record record() const { return record_->Get(); }
  uint64_t agent_peak_rss() const { return machine_->agent_peak_rss(); }

  // Boots the VM. On an error everything is undone and the sandbox is gone
  // (`forgotten` was called); CANCELLED if CancelStart or Stop came in between.
  Co<absl::StatusOr<SandboxSnapshot>> Start();
  // Ends a Start in flight.
  void CancelStart();
  // When it returns OK no process of the sandbox runs; the record stays.
  Co<absl::Status> Stop();
  // Stop, and then the record goes.
  Co<absl::Status> Shutdown();
  Co<absl::StatusOr<io::containerd::cgroups::v2::Metrics>> Metrics();
  Co<absl::Status> Update(UpdatedResources resources);

  // `handler` is called once: with the exit when the sandbox is over, with
  // UNAVAILABLE when the daemon ends, or with CANCELLED by CancelWait. On the strand.
  uint64_t AddWait(WaitHandler handler);
  void CancelWait(uint64_t wait);

  // At the daemon's start: brings one that was found on disk to a state. Connects
  // to what runs, finishes what was being undone.
  Co<void> Recover();
  // The second half: talks to the guest, and kills one that does not answer.
  Co<void> RecoverGuest();

  // At the daemon's end: a Start in flight is given up and none begins any more, every wait is
  // answered. Returns when no operation is in flight.
  Co<void> Detach();

  // Called on the strand once the sandbox is gone, before its last operation returns.
  void OnForgotten(std::function<void()> forgotten) { forgotten_ = std::move(forgotten); }

 private:
  void Publish(SandboxState state);
  void OnExit(const supervisor::v1::ExitRecord& exit);
  // No VM runs, or will run, and the snapshot tells its end.
  bool Over() const;
  void AnswerWaits();
  Co<void> ClearResidues();
  Co<absl::Status> StopLocked();
  Co<absl::Status> Forget();
  absl::Status SetState(SandboxState state);

  const Environment* env_;
  const std::string id_;
  std::shared_ptr<RecordFile> record_;
  Strand strand_;
  std::shared_ptr<Machine> machine_;
  AsyncMutex operation_;
  SandboxState state_;
  bool cancelled_ = false;
  bool detached_ = false;
  uint64_t next_wait_ = 1;
  std::map<uint64_t, WaitHandler> waits_;
  std::function<void()> forgotten_;

  mutable std::mutex snapshot_mutex_;
  std::shared_ptr<const SandboxSnapshot> snapshot_;
};

}  // namespace magnetar::daemon
