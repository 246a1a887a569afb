#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/machine.h"
#include "src/daemon/sandbox/process.h"

namespace magnetar::daemon {
namespace {

constexpr std::chrono::seconds kQuitLimit{1};
constexpr std::chrono::seconds kDeathLimit{10};
constexpr std::chrono::seconds kDrainLimit{10};

}  // namespace

Co<absl::Status> Machine::TearDown(bool ask_guest) {
  auto self = shared_from_this();
  tearing_down_ = true;
  const auto begin = DaemonMetrics::Clock::now();
  Network().Cease();
  std::vector<Step> steps = record_->Get().steps;
  std::reverse(steps.begin(), steps.end());
  absl::Status first;
  for (const Step step : steps) {
    // It gives the VM's uid back, by which the next attempt knows what is its.
    if (step == Step::kDirectory && !first.ok()) break;
    absl::Status status = Failpoint(absl::StrCat("teardown.", StepName(step)));
    if (status.ok()) {
      auto undo = Undo(step, ask_guest);
      status = co_await std::move(undo);
    }
    if (status.ok()) {
      Forgive(record_->RemoveStep(step));
      continue;
    }
    env_->metrics->TeardownFailed(StepName(step));
    Log(LogLevel::kError, "teardown",
        {{"sandbox", id_}, {"step", StepName(step)}, {"error", status.ToString()}});
    if (first.ok()) first = status;
    // Nothing below a VM that runs may be pulled away.
    if (step == Step::kSupervisor) break;
  }
  if (!steps.empty()) env_->metrics->TeardownEnded(begin);
  co_return first;
}

// A journal that cannot be written, on a full disk, tells too much: undoing a step
// twice does no harm, while going no further would leave all of it behind.
void Machine::Forgive(const absl::Status& written) const {
  if (written.ok()) return;
  Log(LogLevel::kWarn, "journal not written", {{"sandbox", id_}, {"error", written.ToString()}});
}

Co<absl::Status> Machine::Undo(Step step, bool ask_guest) {
  const Record now = record_->Get();
  switch (step) {
    case Step::kGuest:
      // The guest is asked when its VM is ended: both are one step of the ladder.
      co_return absl::OkStatus();
    case Step::kSupervisor: {
      auto end = EndVm(ask_guest);
      const absl::Status ended = co_await std::move(end);
      co_return ended;
    }
    case Step::kShared: {
      auto blocking = RunBlocking(*env_->blocking, [env = env_, path = Path("shared")] {
        absl::Status status = env->storage->UnmountAll(path);
        if (status.ok()) status = env->shared->Remove(path);
        return status;
      });
      const absl::Status status = co_await std::move(blocking);
      if (!status.ok()) co_return status;
      // The disks went with the VM, the mounts just now.
      Forgive(record_->Update([](Record& record) { record.container_steps.clear(); }));
      co_return absl::OkStatus();
    }
    case Step::kNetwork: {
      auto stop = Network().Stop();
      co_await std::move(stop);
      auto blocking = RunBlocking(*env_->blocking, [env = env_, now] {
        return env->network->Detach(now.netns_path, now.uid);
      });
      const absl::Status status = co_await std::move(blocking);
      if (!status.ok()) co_return status;
      Forgive(record_->Update([](Record& record) { record.nics.clear(); }));
      co_return absl::OkStatus();
    }
    case Step::kCgroup: {
      auto blocking = RunBlocking(*env_->blocking, [env = env_, now] {
        return env->cgroups->Remove(now.cgroup_parent, now.id);
      });
      const absl::Status status = co_await std::move(blocking);
      co_return status;
    }
    case Step::kDirectory: {
      auto blocking =
          RunBlocking(*env_->blocking, [path = Path("vmm")] { return RemoveTree(path); });
      const absl::Status status = co_await std::move(blocking);
      if (!status.ok()) co_return status;
      // Given back once, and not reserved by a later daemon that finds the record.
      if (now.uid != 0) env_->uids->Give(now.uid);
      Forgive(record_->Update([](Record& record) { record.uid = 0; }));
      co_return absl::OkStatus();
    }
  }
  co_return absl::InternalError("unknown step");
}

// Ask, quit, kill; returns when no process of the VM is left.
Co<absl::Status> Machine::EndVm(bool ask_guest) {
  requests_->Refuse();
  if (ask_guest && agent_ == nullptr && !ended_.is_set()) {
    // Between two connections, or in a daemon that has just come: what its containers wrote
    // is worth one attempt.
    auto connect = ConnectAgent(std::chrono::steady_clock::now() + env_->config.vm.stop_timeout);
    const absl::Status status = co_await std::move(connect);
    if (!status.ok()) {
      Log(LogLevel::kWarn, "the guest cannot be asked to shut down",
          {{"sandbox", id_}, {"error", status.ToString()}});
    }
  }
  if (ask_guest && agent_ != nullptr && !ended_.is_set()) {
    auto agent = agent_;
    auto shutdown = agent->Shutdown(env_->config.vm.stop_timeout);
    const absl::Status status = co_await std::move(shutdown);
    if (!status.ok() && !ended_.is_set()) {
      Log(LogLevel::kWarn, "the guest did not shut down cleanly",
          {{"sandbox", id_}, {"error", status.ToString()}});
    }
    MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("teardown.asked"));
  }
  if (ask_guest && vm_ != nullptr && !ended_.is_set()) {
    const std::shared_ptr<vmm::Vm> vm = vm_;
    auto quit = vm->Quit();
    const absl::Status status = co_await std::move(quit);
    if (status.ok()) {
      auto wait = ended_.WaitFor(kQuitLimit);
      co_await std::move(wait);
    }
  }
  if (supervisor_ == nullptr) {
    // A daemon that died while it started this one.
    auto connect = env_->supervisors->Connect(directory_);
    absl::StatusOr<std::shared_ptr<SupervisorClient>> found = co_await std::move(connect);
    if (found.ok()) supervisor_ = *std::move(found);
  }
  if (supervisor_ != nullptr && !ended_.is_set()) {
    const std::shared_ptr<SupervisorClient> supervisor = supervisor_;
    auto kill = supervisor->Kill();
    const absl::Status status = co_await std::move(kill);
    if (!status.ok()) {
      Log(LogLevel::kWarn, "vmm-supervisor did not end its VM",
          {{"sandbox", id_}, {"error", status.ToString()}});
    }
  }
  // Whatever became of the supervisor: each process by its identity.
  auto processes = record_->Get().processes;
  auto blocking = RunBlocking(*env_->blocking, [processes = std::move(processes), this] {
    absl::Status status = KillAndWait(processes, kDeathLimit);
    for (const char* name : {"vm.vsock", "supervisor.sock"}) {
      const absl::Status removed = RemoveFile(Path(name));
      if (status.ok()) status = removed;
    }
    return status;
  });
  const absl::Status status = co_await std::move(blocking);
  if (!status.ok()) co_return status;
  if (!ended_.is_set() && supervisor_ != nullptr) {
    // Its connection breaks now if it has not told the end already.
    auto wait = ended_.WaitFor(kQuitLimit);
    co_await std::move(wait);
  }
  if (agent_ != nullptr) agent_->Close();
  requests_->SetVm(nullptr);
  // What is being prepared finds no VM, and its mounts are best undone before the others. A host
  // path that hangs must not keep the pod: if it ever comes back, its mount finds no place.
  auto drain = requests_->Drain(kDrainLimit);
  const bool drained = co_await std::move(drain);
  if (!drained) {
    Log(LogLevel::kWarn, "containers that are still being prepared are left to themselves",
        {{"sandbox", id_}});
  }
  vm_.reset();
  supervisor_.reset();
  Forgive(record_->Update([](Record& record) { record.processes.clear(); }));
  co_return absl::OkStatus();
}

}  // namespace magnetar::daemon
