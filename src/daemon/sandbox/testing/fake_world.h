#pragma once

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_future.hpp>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "src/daemon/containerd/fake_client.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/environment.h"
#include "src/daemon/sandbox/manager.h"

namespace magnetar::daemon {

// A host in memory: every interface that a sandbox uses, as a fake that notes what
// is done ("cgroup.create"), fails where it is told to, and has VMs that only
// pretend. A VM lives here, so that a second daemon can find it again.
class FakeWorld {
 public:
  FakeWorld();
  ~FakeWorld();

  SandboxManager& manager() { return *manager_; }
  Environment& env() { return *env_; }

  // The daemon dies, whatever it was at, and a new one comes up over the same host.
  // Its manager has not recovered yet.
  void Restart();

  // Runs a coroutine (on a sandbox's strand) and waits for it.
  template <typename T>
  T Await(Co<T> work) {
    return Begin(std::move(work)).get();
  }
  template <typename T>
  std::future<T> Begin(Co<T> work) {
    return asio::co_spawn(*io_, std::move(work), asio::use_future);
  }
  template <typename T>
  T Await(const std::shared_ptr<Sandbox>& sandbox, Co<T> work) {
    return Begin(sandbox, std::move(work)).get();
  }
  // Begins it and does not wait.
  template <typename T>
  std::future<T> Begin(const std::shared_ptr<Sandbox>& sandbox, Co<T> work) {
    return asio::co_spawn(sandbox->strand(), std::move(work), asio::use_future);
  }

  // Create with a plausible configuration.
  absl::Status Create(const std::string& id);
  std::shared_ptr<Sandbox> Get(const std::string& id) { return manager_->Find(id).value(); }
  std::string Directory(const std::string& id) const { return directory_ + "/" + id; }

  // From now on, until Heal, the call fails; the names are those of calls().
  void Fail(const std::string& call, absl::Status status);
  void Heal();
  std::vector<std::string> calls() const;
  int Count(const std::string& call) const;
  // Waits until `call` has been made `times` times.
  void WaitFor(const std::string& call, int times = 1);
  // Cgroups, networks, shared directories and VMs that exist now.
  std::vector<std::string> Residues();

  // The VM dies by itself.
  void KillVm(const std::string& id);
  // The guest neither gets ready nor answers heartbeats.
  void HangGuest(bool hang) { hang_ = hang; }
  // It answers heartbeats, with a main loop that has not turned for so long.
  // What the agent says in Hello from now on.
  void NameFeatures(std::vector<std::string> features);
  std::vector<std::string> features() const;
  void StopMainLoop(std::chrono::milliseconds age) { main_loop_age_ms_ = age.count(); }
  // From now on the call is made and does not return, until the daemon dies or Release.
  void Hold(const std::string& call);
  void Release();
  // The guest has taken, or given back, what it was asked to; or its VMM says that it has
  // `memory_bytes`.
  void TakeMemory(const std::string& id, uint64_t memory_bytes = 0);
  // The VMM closes its connection, and lives on.
  void DropVmm(const std::string& id);
  // What the pod's netns holds, and the news that it has changed.
  void SetPod(PodState pod);
  PodState pod() const;
  void Announce();
  // The VM has let go of a device.
  void DeleteDevice(const std::string& id, const std::string& device);
  void Advance(std::chrono::nanoseconds time) { clock_.offset_ns += time.count(); }

  FakeContainerdClient containerd;
  // Of this daemon and the ones after Restart.
  Config config;

  // What the agent says in Hello.
  std::atomic<uint32_t> agent_protocol{1};
  // What the next greetings take, which is nothing once these have been. To be set before a start.
  std::deque<std::chrono::milliseconds> greetings_take;
  // Of the latest agent.resize.
  std::atomic<uint64_t> added_bytes{0};
  // What the VMM was asked for last.
  std::atomic<uint64_t> requested_bytes{0};
  // What the guest says that it can do without; negative: one that says nothing.
  std::atomic<int64_t> spare_bytes{int64_t{1} << 40};
  // Of the latest cgroup.update.
  std::atomic<uint64_t> updated_memory_bytes{0};
  std::atomic<uint64_t> memory_limit_above{0};

  // For the fakes.
  struct Vm;
  void ChangePod(const std::function<void(PodState&)>& change);
  void Watched(UniqueFd announce);
  void Told(agent::v1::Network network);
  agent::v1::Network told() const;
  // MACs of a VM's NICs, by their ids; on the event thread.
  std::map<std::string, std::string> Nics(const std::string& directory) const;
  vmm::Size planned;  // of the latest driver.plan
  absl::Status Note(const std::string& call);
  // Note for a call that blocks, and for a coroutine on the event thread, if it is held.
  absl::Status NoteBlocking(const std::string& call);
  Co<absl::Status> NoteAsync(std::string call);
  uint64_t main_loop_age_ms() const { return main_loop_age_ms_; }
  void Made(const std::string& thing);
  void Removed(const std::string& thing);
  bool hang() const { return hang_; }
  std::map<std::string, std::shared_ptr<Vm>> vms_;  // by directory; on the event thread
  // Of the last container that was prepared.
  std::atomic<bool> pod_shares_pids{true};
  // Of the last container that was prepared.
  std::string pid_namespace_of;
  std::vector<RequestedDevice> devices;

 private:
  struct Fakes;
  struct FakeClock : Clock {
    int64_t RealtimeNs() const override { return daemon::RealtimeNs() + offset_ns; }
    std::atomic<int64_t> offset_ns{0};
  };
  using Work = asio::executor_work_guard<asio::io_context::executor_type>;
  void Up();
  void Down();
  bool Held(const std::string& call) const;

  mutable std::mutex mutex_;
  std::condition_variable noted_;
  std::vector<std::string> calls_;
  std::vector<std::string> features_ = {"feature", "resize"};
  std::map<std::string, absl::Status> failures_;
  std::set<std::string> things_;
  std::set<std::string> held_;
  PodState pod_;
  std::vector<UniqueFd> watchers_;
  agent::v1::Network told_;
  std::atomic<bool> hang_{false};
  std::atomic<uint64_t> main_loop_age_ms_{0};
  FakeClock clock_;

  std::string directory_;
  std::unique_ptr<Fakes> fakes_;
  std::unique_ptr<Environment> env_;
  std::unique_ptr<asio::thread_pool> pool_;
  std::unique_ptr<asio::io_context> io_;
  std::unique_ptr<Event> released_;
  std::unique_ptr<SandboxManager> manager_;
  std::unique_ptr<Work> work_;
  std::thread thread_;
};

}  // namespace magnetar::daemon
