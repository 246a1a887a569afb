#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "magnetar/child_process.h"
#include "magnetar/co.h"
#include "magnetar/event.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"
#include "src/supervisor/exit_file.h"
#include "src/supervisor/gate.h"
#include "src/supervisor/ring.h"

namespace magnetar::supervisor {

// The processes of one VM and their one fate: the first that ends takes the
// others with it. Lives until the supervisor exits.
class Machine {
 public:
  Machine(const asio::any_io_executor& executor, const v1::Launch& launch, ExitFile exit_file);

  // Starts everything, and closes what the processes were given. Blocks until each has executed
  // its program. A failure becomes the machine's end.
  void Start();

  // After Start: waits for the first end or for Kill, ends and reaps the
  // rest, descendants included, and writes exit.json. Once. It waits for the VMM as
  // long as that takes, for a helper stuck in the kernel not for ever.
  Co<void> Run();

  // Ends every process. `reason` is recorded unless something ended before. `unkillable`: because
  // the guest does not end a container.
  void Kill(const std::string& reason, bool unkillable = false);

  void SetReady();
  // A line of the supervisor's own into the ring and, if that takes it at once, to stderr.
  void Log(const std::string& line);

  // Opens when the guest has knocked.
  Gate& ready() { return ready_; }
  // Opens when the first process has ended, or Kill was called: the guest is lost.
  Gate& ending() { return ending_; }
  // Opens at either.
  Gate& ready_or_ending() { return ready_or_ending_; }
  // Opens when exit() is there.
  Gate& ended() { return ended_; }
  // Opens at either.
  Gate& ready_or_ended() { return ready_or_ended_; }
  const std::optional<v1::ExitRecord>& exit() const { return exit_; }
  const Ring& ring() const { return ring_; }
  void FillState(v1::StateResponse& state) const;
  // For an error message: how the VM ended, and the last lines of the ring.
  std::string Epitaph() const;

 private:
  struct Running {
    std::string name;
    bool vmm = false;
    uint64_t start_time_ticks = 0;
    ChildProcess process;
  };

  absl::Status StartAll();
  void CloseWhatChildrenGot() const;
  void SetEnding();
  Co<void> Watch(size_t index);
  Co<void> PumpOutput(std::string name, bool console, UniqueFd pipe);
  void Begin(Co<void> coroutine, int& counter);
  using Deadline = Event::Clock::time_point;
  Co<void> WaitForVmm(Deadline deadline);
  Co<void> WaitForZero(const int& counter, Deadline deadline);
  Co<void> ReapDescendants(Deadline deadline);
  void SetReason(std::string reason);
  std::string VmmName() const;

  asio::any_io_executor executor_;
  const v1::Launch& launch_;
  Ring ring_;
  ExitFile exit_file_;
  UniqueFd children_;  // the kernel's list of this process's
  Gate ready_, ending_, ready_or_ending_, ended_, ready_or_ended_;
  Event finished_;  // a watcher, a pump or a child of somebody else's has
  int watchers_ = 0;
  int pumps_ = 0;
  std::vector<Running> processes_;
  std::string reason_;
  bool unkillable_ = false;
  int64_t ended_at_ns_ = 0;
  uint32_t vmm_status_ = 127;  // as a shell tells it of what could not be started
  std::optional<v1::ExitRecord> exit_;
};

}  // namespace magnetar::supervisor
