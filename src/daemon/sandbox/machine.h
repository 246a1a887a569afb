#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cri/runtime.pb.h"
#include "magnetar/async_mutex.h"
#include "magnetar/co.h"
#include "magnetar/supervisor.pb.h"
#include "src/daemon/metrics/metrics.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/host_requests.h"
#include "src/daemon/sandbox/network_watch.h"
#include "src/daemon/sandbox/record.h"
#include "src/daemon/sandbox/sizes.h"
#include "vmm/file_share.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

// A sandbox's VM with everything on the host that belongs to it: made in
// journalled steps, found again by a later daemon, taken down in one order.
// It knows nothing of states or RPCs: Sandbox does.
//
// Everything on the sandbox's strand. Start, Reconnect and TearDown never overlap;
// Kill may come at any time.
class Machine : public std::enable_shared_from_this<Machine> {
 public:
  using ExitHandler = std::function<void(const supervisor::v1::ExitRecord&)>;

  Machine(const Environment* environment, std::shared_ptr<RecordFile> record,
          const asio::any_io_executor& strand);

  // Called once, on the strand, as soon as the VM has ended, whatever the cause.
  void OnExit(ExitHandler handler) { on_exit_ = std::move(handler); }

  // Makes everything and returns when the guest is ready for containers. On an
  // error the caller tears down.
  Co<absl::Status> Start(runtime::v1::PodSandboxConfig pod);

  // Finds the supervisor that an earlier daemon started. UNAVAILABLE: the VM is gone.
  Co<absl::Status> Reconnect();
  // Then its guest. An error: it answers no heartbeat, not even after a second probe. One that
  // does is served from now on, as soon as its agent and its VMM can be reached.
  Co<absl::Status> ReconnectGuest();

  // The one order in which a sandbox goes: guest unmounts and syncs (if `ask_guest`), quit, KILL,
  // file server, mounts, tap, cgroup. Undoes what the journal tells and nothing else; goes on after
  // an error and returns the first one. May be repeated.
  Co<absl::Status> TearDown(bool ask_guest);

  // Gives the VM the size that the record's limits want, and the cgroup around it its limits. OK as
  // soon as processors run and memory is on its way: the record tells how much the guest has taken.
  Co<absl::Status> Resize();

  // Ends the VM now, without waiting; a Start in flight goes no further. `reason` is logged, `end`
  // is what the VM's end is counted as.
  void Kill(VmEnd end, std::string reason);

  bool ended() const { return ended_.is_set(); }

  // The agent's peak resident memory in bytes, as its guest tells it; 0: not told yet. Any thread.
  uint64_t agent_peak_rss() const { return agent_peak_rss_; }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  // What is left for a call, which takes zero for no limit.
  static std::chrono::nanoseconds Left(TimePoint deadline);

  // Does the work of a phase, and tells how it ended.
  Co<absl::Status> Timed(StartPhase phase, Co<absl::Status> work);
  Co<absl::Status> MakeHost(const runtime::v1::PodSandboxConfig& pod);
  // What a VM may have within the memory limits of the cgroups above it.
  Co<absl::StatusOr<uint64_t>> MemoryLimitAbove();
  Co<absl::Status> CheckRoom(uint64_t asked_bytes);
  Co<absl::Status> MakeNetwork();
  Co<absl::Status> Launch();
  Co<absl::Status> WaitUntilReady();
  Co<absl::Status> LearnProcesses();
  Co<void> SetGuestClock();
  Co<absl::Status> SetupGuest(const runtime::v1::PodSandboxConfig& pod);
  // CANCELLED once Kill was called.
  absl::Status CheckKilled() const;
  Co<absl::Status> ExplainEnd(absl::Status status);

  Co<absl::Status> AttachVm();
  void OnVmEvent(const vmm::Vm* vm, const vmm::Event& event);
  Co<void> ReattachVm();
  Co<absl::Status> ConnectAgent(TimePoint deadline);
  void ServeGuest();
  NetworkWatch& Network();
  Co<void> ServeRequests();
  Co<absl::Status> ServeOnce();
  Co<void> RunHeartbeat();
  Co<absl::Status> SeekLife(std::chrono::nanoseconds limit);
  Co<absl::Status> Beat(std::chrono::nanoseconds timeout);
  Co<absl::StatusOr<supervisor::v1::StateResponse>> AskSupervisor();
  Co<void> WatchExit(std::shared_ptr<SupervisorClient> supervisor);
  void Ended(supervisor::v1::ExitRecord exit);
  VmEnd HowItEnded() const;
  bool over() const { return ended_.is_set() || tearing_down_; }

  void BeginResize();
  Co<void> ResizeAlone();
  Co<absl::Status> ApplySize(MachineSize wanted);
  // Tells the guest what it has, and what of that it is to keep.
  Co<absl::StatusOr<agent::v1::ResizeResponse>> TellSize(vmm::Size size, uint32_t vcpus,
                                                         uint64_t memory_bytes,
                                                         uint64_t wanted_bytes);
  // What the VM may be asked to shrink to: a guest that is asked for what is in use kills for it.
  Co<absl::StatusOr<uint64_t>> LeastMemory(vmm::Size size, uint64_t wanted_bytes);
  void AskAgain();
  Co<void> ResizeLater(std::chrono::seconds pause);
  Co<absl::Status> LimitCgroup();

  Co<absl::Status> EndVm(bool ask_guest);
  Co<absl::Status> Undo(Step step, bool ask_guest);
  void Forgive(const absl::Status& written) const;
  // Of this sandbox; only while it starts, when it is what the configuration says.
  const vmm::FileShare* Share() const;
  std::string Path(const std::string& name) const;

  const Environment* env_;
  std::shared_ptr<RecordFile> record_;
  asio::any_io_executor strand_;
  const std::string id_;
  const std::string directory_;
  std::shared_ptr<HostRequests> requests_;
  std::shared_ptr<SupervisorClient> supervisor_;
  std::shared_ptr<AgentClient> agent_;
  std::shared_ptr<vmm::Vm> vm_;
  bool vm_lost_ = false;  // the VM runs, its VMM's connection is gone
  std::shared_ptr<NetworkWatch> network_watch_;
  AsyncMutex attaching_;  // a VMM talks to one at a time
  AsyncMutex resizing_;
  bool resize_waits_ = false;          // begun, and not yet at work
  bool asks_again_ = false;            // ResizeLater is under way
  std::chrono::seconds ask_pause_{0};  // the last one's; it grows until the VM has its size
  AsyncFlag ended_;
  supervisor::v1::ExitRecord exit_;  // once it has ended
  ExitHandler on_exit_;
  std::string killed_;  // why Kill was called; empty: it was not
  VmEnd killed_as_ = VmEnd::kAsked;
  bool panicked_ = false;
  std::atomic<uint64_t> agent_peak_rss_{0};
  bool tearing_down_ = false;
  bool serving_ = false;

  // Only while it starts.
  TimePoint deadline_{};
  std::vector<UniqueFd> cgroup_procs_;
  PodNetwork network_;
};

}  // namespace magnetar::daemon
