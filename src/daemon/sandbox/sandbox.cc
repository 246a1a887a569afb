#include "src/daemon/sandbox/sandbox.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/sizes.h"

namespace magnetar::daemon {
namespace {

struct StateName {
  SandboxState state;
  std::string_view name;
};

constexpr StateName kStateNames[] = {
    {SandboxState::kCreated, "created"},   {SandboxState::kStarting, "starting"},
    {SandboxState::kReady, "ready"},       {SandboxState::kStopping, "stopping"},
    {SandboxState::kNotReady, "notready"}, {SandboxState::kGone, "gone"},
};

SandboxState StateFromName(std::string_view name) {
  for (const StateName& s : kStateNames) {
    if (s.name == name) return s.state;
  }
  // Written by no daemon that we know: what there is gets taken down.
  return SandboxState::kStopping;
}

absl::Status RemoveDirectory(const std::string& directory) {
  // The record goes last: until then a daemon that comes later knows what this was.
  for (const char* name : {"shared", "vmm"}) {
    MAGNETAR_RETURN_IF_ERROR(RemoveTree(absl::StrCat(directory, "/", name)));
  }
  for (const char* name : {"vm.vsock", "supervisor.sock", "exit.json"}) {
    MAGNETAR_RETURN_IF_ERROR(RemoveFile(absl::StrCat(directory, "/", name)));
  }
  return RemoveTree(directory);
}

}  // namespace

std::string_view SandboxStateName(SandboxState state) {
  for (const StateName& s : kStateNames) {
    if (s.state == state) return s.name;
  }
  return "";
}

Sandbox::Sandbox(const Environment* environment, std::shared_ptr<RecordFile> record)
    : env_(environment),
      id_(record->Get().id),
      record_(std::move(record)),
      strand_(asio::make_strand(*environment->io)),
      machine_(std::make_shared<Machine>(environment, record_, strand_)),
      operation_(strand_),
      state_(StateFromName(record_->Get().state)) {
  Publish(state_);
}

std::shared_ptr<const SandboxSnapshot> Sandbox::snapshot() const {
  const std::lock_guard lock(snapshot_mutex_);
  return snapshot_;
}

void Sandbox::Publish(SandboxState state) {
  state_ = state;
  const Record record = record_->Get();
  auto snapshot = std::make_shared<SandboxSnapshot>();
  snapshot->id = id_;
  snapshot->containerd_namespace = record.containerd_namespace;
  snapshot->state = state;
  if (state == SandboxState::kReady) snapshot->pid = record.vmm_pid;
  // Three slashes: containerd cuts at "//" and dials the rest as a path.
  snapshot->address =
      absl::StrCat("ttrpc+hvsock://", record_->directory(), "/vm.vsock:", kTaskPort);
  snapshot->created_at_ns = record.created_at_ns;
  snapshot->exited_at_ns = record.exited_at_ns;
  snapshot->exit_status = record.exit_status;
  const std::lock_guard lock(snapshot_mutex_);
  snapshot_ = std::move(snapshot);
}

absl::Status Sandbox::SetState(SandboxState state) {
  const absl::Status status =
      record_->Update([&](Record& record) { record.state = std::string(SandboxStateName(state)); });
  Publish(state);
  if (!status.ok()) {
    Log(LogLevel::kError, "record not written", {{"sandbox", id_}, {"error", status.ToString()}});
  }
  return status;
}

Co<absl::StatusOr<SandboxSnapshot>> Sandbox::Start() {
  auto self = shared_from_this();
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (state_ == SandboxState::kGone) {
    co_return absl::NotFoundError(absl::StrCat("sandbox ", id_, " does not exist"));
  }
  if (state_ != SandboxState::kCreated) {
    co_return absl::FailedPreconditionError(absl::StrCat(
        "sandbox ", id_, " is ", std::string(SandboxStateName(state_)), ", not created"));
  }
  if (detached_) co_return absl::UnavailableError("the daemon is ending");
  const auto begin = std::chrono::steady_clock::now();
  Log(LogLevel::kInfo, "starting", {{"sandbox", id_}});
  machine_->OnExit([weak = weak_from_this()](const supervisor::v1::ExitRecord& exit) {
    if (auto sandbox = weak.lock()) sandbox->OnExit(exit);
  });
  absl::Status status = SetState(SandboxState::kStarting);
  if (status.ok() && !cancelled_) {
    runtime::v1::PodSandboxConfig pod;
    if (!pod.ParseFromString(record_->Get().pod_config)) {
      status = absl::DataLossError("the record's pod_config does not parse");
    } else {
      auto start = machine_->Start(std::move(pod));
      status = co_await std::move(start);
    }
  }
  if (cancelled_) status = absl::CancelledError("the start was cancelled");
  if (status.ok() && machine_->ended()) {
    status = absl::FailedPreconditionError("the VM ended while it was starting");
  }
  if (status.ok()) {
    status = record_->Update([this](Record& record) {
      record.state = "ready";
      record.started_at_ns = env_->clock->RealtimeNs();
    });
  }
  env_->metrics->StartEnded(status, begin);
  if (!status.ok()) {
    Log(LogLevel::kError, "start failed", {{"sandbox", id_}, {"error", status.ToString()}});
    auto undo = Forget();
    (void)co_await std::move(undo);  // it logs its own failure
    co_return status;
  }
  Publish(SandboxState::kReady);
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begin);
  Log(LogLevel::kInfo, "ready",
      {{"sandbox", id_},
       {"pid", absl::StrCat(snapshot()->pid)},
       {"ms", absl::StrCat(took.count())}});
  co_return *snapshot();
}

void Sandbox::CancelStart() {
  if (state_ != SandboxState::kStarting && state_ != SandboxState::kCreated) return;
  cancelled_ = true;
  if (state_ == SandboxState::kStarting) machine_->Kill(VmEnd::kAsked, "the start was cancelled");
}

// Takes everything down and lets the sandbox be as if it had never been. One that
// cannot be taken down stays, not ready, for the next Shutdown.
Co<absl::Status> Sandbox::Forget() {
  auto tear_down = machine_->TearDown(/*ask_guest=*/state_ == SandboxState::kReady);
  absl::Status status = co_await std::move(tear_down);
  const bool torn_down = status.ok();  // it counts its own failures
  // Whoever waits is told when it ended, also of one that never was ready.
  (void)record_->Update([this](Record& record) {
    if (record.exited_at_ns == 0) record.exited_at_ns = env_->clock->RealtimeNs();
  });
  if (status.ok()) status = Failpoint("forget.directory");
  if (status.ok()) {
    auto remove = RunBlocking(
        *env_->blocking, [directory = record_->directory()] { return RemoveDirectory(directory); });
    status = co_await std::move(remove);
  }
  if (!status.ok()) {
    if (torn_down) env_->metrics->TeardownFailed("record");
    Log(LogLevel::kError, "cleanup failed", {{"sandbox", id_}, {"error", status.ToString()}});
    (void)SetState(SandboxState::kNotReady);
    AnswerWaits();
    co_return status;
  }
  Publish(SandboxState::kGone);
  AnswerWaits();
  if (forgotten_) std::exchange(forgotten_, nullptr)();
  Log(LogLevel::kInfo, "gone", {{"sandbox", id_}});
  co_return absl::OkStatus();
}

Co<absl::Status> Sandbox::Stop() {
  auto self = shared_from_this();
  CancelStart();
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (state_ == SandboxState::kGone) {
    co_return absl::NotFoundError(absl::StrCat("sandbox ", id_, " does not exist"));
  }
  auto stop = StopLocked();
  const absl::Status status = co_await std::move(stop);
  co_return status;
}

Co<absl::Status> Sandbox::StopLocked() {
  const bool was_ready = state_ == SandboxState::kReady;
  if (state_ == SandboxState::kNotReady && record_->Get().steps.empty()) co_return absl::OkStatus();
  if (state_ != SandboxState::kNotReady) {
    Log(LogLevel::kInfo, "stopping", {{"sandbox", id_}});
    (void)SetState(SandboxState::kStopping);
  }
  auto tear_down = machine_->TearDown(/*ask_guest=*/was_ready);
  const absl::Status status = co_await std::move(tear_down);
  const std::vector<Step> left = record_->Get().steps;
  const bool runs = std::find(left.begin(), left.end(), Step::kSupervisor) != left.end();
  if (runs) co_return Annotate(status, "the VM could not be ended");
  (void)record_->Update([this](Record& record) {
    record.state = "notready";
    if (record.exited_at_ns == 0) record.exited_at_ns = env_->clock->RealtimeNs();
  });
  Publish(SandboxState::kNotReady);
  AnswerWaits();
  Log(LogLevel::kInfo, "stopped", {{"sandbox", id_}});
  co_return status;
}

Co<absl::Status> Sandbox::Shutdown() {
  auto self = shared_from_this();
  CancelStart();
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (state_ == SandboxState::kGone) {
    co_return absl::NotFoundError(absl::StrCat("sandbox ", id_, " does not exist"));
  }
  auto stop = StopLocked();
  const absl::Status status = co_await std::move(stop);
  if (!status.ok()) co_return status;
  auto forget = Forget();
  const absl::Status forgotten = co_await std::move(forget);
  co_return forgotten;
}

void Sandbox::OnExit(const supervisor::v1::ExitRecord& exit) {
  (void)record_->Update([&](Record& record) {
    record.exit_status = exit.status();
    record.exited_at_ns =
        exit.exited_at_ns() != 0 ? exit.exited_at_ns() : env_->clock->RealtimeNs();
    record.exit_reason = exit.reason();
    if (record.state == "ready") record.state = "notready";
  });
  if (state_ == SandboxState::kStopping) {
    // What is left to be taken down may take its time; the VM's end is known now.
    Publish(state_);
    AnswerWaits();
    return;
  }
  if (state_ != SandboxState::kReady) return;  // whoever is at work tells the end
  Log(LogLevel::kWarn, "the VM ended",
      {{"sandbox", id_}, {"status", absl::StrCat(exit.status())}, {"reason", exit.reason()}});
  Publish(SandboxState::kNotReady);
  AnswerWaits();
  if (!detached_) asio::co_spawn(strand_, ClearResidues(), asio::detached);
}

// containerd sends no Stop for a sandbox that is not ready: what its VM left behind
// goes at once.
Co<void> Sandbox::ClearResidues() {
  auto self = shared_from_this();
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (state_ != SandboxState::kNotReady) co_return;
  auto stop = StopLocked();
  (void)co_await std::move(stop);
}

uint64_t Sandbox::AddWait(WaitHandler handler) {
  const uint64_t id = next_wait_++;
  if (detached_) {
    handler(absl::UnavailableError("the daemon is ending"));
    return id;
  }
  waits_.emplace(id, std::move(handler));
  if (Over()) AnswerWaits();
  return id;
}

bool Sandbox::Over() const {
  switch (state_) {
    case SandboxState::kNotReady:
    case SandboxState::kGone:
      return true;
    case SandboxState::kStopping:
      return snapshot()->exited_at_ns != 0;
    default:
      return false;
  }
}

void Sandbox::CancelWait(uint64_t wait) {
  const auto it = waits_.find(wait);
  if (it == waits_.end()) return;
  WaitHandler handler = std::move(it->second);
  waits_.erase(it);
  handler(absl::CancelledError("the wait was cancelled"));
}

void Sandbox::AnswerWaits() {
  const auto waits = std::exchange(waits_, {});
  const auto now = snapshot();
  for (const auto& [id, handler] : waits) {
    if (detached_) {
      handler(absl::UnavailableError("the daemon is ending"));
    } else {
      handler(SandboxExit{now->exit_status, now->exited_at_ns});
    }
  }
}

Co<absl::StatusOr<io::containerd::cgroups::v2::Metrics>> Sandbox::Metrics() {
  auto self = shared_from_this();
  const Record now = record_->Get();
  auto blocking = RunBlocking(*env_->blocking, [env = env_, now] {
    return env->cgroups->Metrics(now.cgroup_parent, now.id);
  });
  absl::StatusOr<io::containerd::cgroups::v2::Metrics> metrics = co_await std::move(blocking);
  // One that has ended has no cgroup, and used nothing since.
  if (!metrics.ok() && state_ != SandboxState::kReady) {
    co_return io::containerd::cgroups::v2::Metrics();
  }
  co_return metrics;
}

Co<absl::Status> Sandbox::Update(UpdatedResources resources) {
  auto self = shared_from_this();
  {
    auto lock = operation_.Lock();
    const AsyncMutex::Guard guard = co_await std::move(lock);
    if (state_ == SandboxState::kGone) {
      co_return absl::NotFoundError(absl::StrCat("sandbox ", id_, " does not exist"));
    }
    if (state_ != SandboxState::kReady) co_return absl::OkStatus();
    MAGNETAR_CO_RETURN_IF_ERROR(CheckFits(record_->Get(), resources.resources, env_->config));
    MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) {
      record.pod_updated = true;
      record.pod_resources = resources.resources.SerializeAsString();
      record.pod_overhead = resources.overhead.SerializeAsString();
    }));
  }
  // A guest that takes its time holds no Stop back.
  auto resize = machine_->Resize();
  const absl::Status status = co_await std::move(resize);
  co_return status;
}

Co<void> Sandbox::Recover() {
  auto self = shared_from_this();
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  machine_->OnExit([weak = weak_from_this()](const supervisor::v1::ExitRecord& exit) {
    if (auto sandbox = weak.lock()) sandbox->OnExit(exit);
  });
  switch (state_) {
    case SandboxState::kCreated:
      co_return;  // containerd may still start it, or it becomes an orphan
    case SandboxState::kStarting: {
      // Whoever asked for it has been told that it failed.
      Log(LogLevel::kInfo, "cleaning up a start that was cut off", {{"sandbox", id_}});
      auto forget = Forget();
      (void)co_await std::move(forget);  // it logs its own failure
      co_return;
    }
    case SandboxState::kReady: {
      auto reconnect = machine_->Reconnect();
      const absl::Status status = co_await std::move(reconnect);
      Log(LogLevel::kInfo, status.ok() ? "found again" : "found dead",
          {{"sandbox", id_}, {"status", status.ToString()}});
      co_return;  // a dead one has gone through OnExit
    }
    case SandboxState::kStopping:
    case SandboxState::kNotReady: {
      auto stop = StopLocked();
      (void)co_await std::move(stop);
      co_return;
    }
    case SandboxState::kGone:
      co_return;
  }
}

Co<void> Sandbox::RecoverGuest() {
  auto self = shared_from_this();
  if (state_ != SandboxState::kReady) co_return;
  auto reconnect = machine_->ReconnectGuest();
  const absl::Status status = co_await std::move(reconnect);
  if (status.ok() || state_ != SandboxState::kReady) co_return;
  Log(LogLevel::kError, "the guest does not answer",
      {{"sandbox", id_}, {"error", status.ToString()}});
  machine_->Kill(VmEnd::kHung, status.ToString());
  // Its socket must be gone before containerd dials it.
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (state_ == SandboxState::kGone) co_return;
  auto stop = StopLocked();
  (void)co_await std::move(stop);
}

Co<void> Sandbox::Detach() {
  auto self = shared_from_this();
  CancelStart();
  detached_ = true;
  AnswerWaits();
  auto lock = operation_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
}

}  // namespace magnetar::daemon
