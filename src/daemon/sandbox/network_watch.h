#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "src/daemon/sandbox/agent_client.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/record.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

// Keeps a running VM's NICs, and its guest's network, as the pod's netns has them, from Start() to
// Cease(). What changes there is told by the kernel; a while after the last change, everything is
// read and compared with the record and with what the guest was told last. NICs are plugged and
// unplugged in steps that the record has. What cannot be done is logged and leaves the pod alone.
//
// Everything on the sandbox's strand.
class NetworkWatch : public std::enable_shared_from_this<NetworkWatch> {
 public:
  // What there is of the VM at the moment; either may be nullptr.
  struct Peers {
    std::shared_ptr<vmm::Vm> vm;
    std::shared_ptr<AgentClient> agent;
  };
  using FindPeers = std::function<Peers()>;

  NetworkWatch(const Environment* environment, std::shared_ptr<RecordFile> record,
               const asio::any_io_executor& strand, FindPeers find_peers);

  // Once. `told`: what the guest has; nullopt: not known. Does nothing for a pod without a netns.
  void Start(std::optional<agent::v1::Network> told);
  // Looks again: a peer has come, or the VMM tells that a device is gone.
  void Poke();
  // The VM has lost a NIC.
  void NicGone();
  // Begins nothing any more.
  void Cease();
  // After Cease: returns when nothing is in flight and the netns is let go.
  Co<void> Stop();

 private:
  using Clock = std::chrono::steady_clock;

  Co<void> Run();
  Co<absl::Status> Open();
  Co<void> ReadNews();
  absl::Status Hear();
  Co<void> Settle();
  Co<void> Rest(const absl::Status& status);
  Co<absl::Status> Reconcile();
  Co<absl::StatusOr<PodState>> Read();
  Co<absl::Status> Unplug(Peers peers, RecordedNic nic);
  Co<absl::Status> Plug(Peers peers, RecordedNic nic, PodInterface interface);
  Co<absl::Status> Untie(int index);
  Co<absl::Status> FollowMtus(const PodState& state);
  Co<absl::Status> Tell(Peers peers, agent::v1::Network network);
  void LogRefused(const PodState& state);
  void Changed();

  const Environment* env_;
  std::shared_ptr<RecordFile> record_;
  asio::any_io_executor strand_;
  const std::string id_;
  const FindPeers find_peers_;
  Event changed_;
  AsyncFlag ended_;
  bool running_ = false;
  bool ceased_ = false;
  bool dirty_ = false;
  bool reconciling_ = false;          // taps go by our hand
  Clock::time_point first_change_{};  // since the last look
  Clock::time_point last_change_{};
  std::shared_ptr<const UniqueFd> netns_;  // also of a call that outlives the daemon's loop
  std::shared_ptr<asio::posix::stream_descriptor> news_;
  std::optional<agent::v1::Network> told_;
  std::set<std::pair<int, std::string>> refused_;  // and logged
  int failures_ = 0;                               // in a row
  std::string failure_;                            // the last one that was logged
};

}  // namespace magnetar::daemon
