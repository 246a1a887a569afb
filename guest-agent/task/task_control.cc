// Pause, Resume, Update, and the calls that only look.
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/cgroup.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/task/timestamp.h"
#include "guest-agent/util/log.h"
#include "magnetar/blocking.h"
#include "magnetar/files.h"
#include "magnetar/guest_spec.h"
#include "magnetar/status.h"

namespace magnetar::guest {

namespace v3 = containerd::task::v3;

namespace {

// The kernel freezes a process when it next leaves the kernel; one in a long
// disk wait keeps the others waiting.
constexpr auto kFreezeTimeout = std::chrono::seconds(10);

// The end of a container is no matter of its control lock.
bool Runs(const Container& container) {
  return container.init->state == Process::State::kRunning && !container.init->reaped;
}

}  // namespace

TaskManager::Result<TaskManager::Empty> TaskManager::Pause(v3::PauseRequest request) {
  const absl::StatusOr<ContainerPtr> found = Find(request.id());
  if (!found.ok()) co_return found.status();
  const ContainerPtr container = *found;
  auto acquire = container->control.Acquire();
  const AsyncMutex::Lock lock = co_await std::move(acquire);
  if (!Runs(*container)) {
    co_return absl::FailedPreconditionError("cannot pause a container that is not running");
  }
  if (container->paused) co_return absl::FailedPreconditionError("cannot pause a paused container");
  const std::string events = absl::StrCat(container->cgroup, "/cgroup.events");
  auto frozen = std::make_shared<Event>(executor_);
  auto check = [events, frozen] {
    if (ReadCgroupCounter(events, "frozen") == 1) frozen->Set();
  };
  const absl::StatusOr<int> watch = env_.cgroup_events->Add(events, check);
  if (!watch.ok()) co_return watch.status();
  absl::Status status = SetCgroupFrozen(container->cgroup, true);
  if (status.ok()) {
    check();
    const bool done = co_await frozen->WaitFor(kFreezeTimeout);
    if (!done) {
      status = absl::DeadlineExceededError("the container does not freeze");
      SetCgroupFrozen(container->cgroup, false).IgnoreError();
    }
  }
  env_.cgroup_events->Remove(*watch);
  // A cgroup in which nothing is left counts as frozen.
  if (status.ok() && !Runs(*container)) {
    SetCgroupFrozen(container->cgroup, false).IgnoreError();
    status = absl::FailedPreconditionError("the container ended before it was paused");
  }
  if (!status.ok()) co_return status;
  container->paused = true;
  Tell(agent::v1::GuestEvent::PAUSED, *container);
  co_return Empty();
}

TaskManager::Result<TaskManager::Empty> TaskManager::Resume(v3::ResumeRequest request) {
  const absl::StatusOr<ContainerPtr> found = Find(request.id());
  if (!found.ok()) co_return found.status();
  const ContainerPtr container = *found;
  auto acquire = container->control.Acquire();
  const AsyncMutex::Lock lock = co_await std::move(acquire);
  if (!Runs(*container)) {
    co_return absl::FailedPreconditionError("cannot resume a container that is not running");
  }
  if (!container->paused) {
    co_return absl::FailedPreconditionError("cannot resume a container that is not paused");
  }
  MAGNETAR_CO_RETURN_IF_ERROR(SetCgroupFrozen(container->cgroup, false));
  container->paused = false;
  Tell(agent::v1::GuestEvent::RESUMED, *container);
  co_return Empty();
}

TaskManager::Result<TaskManager::Empty> TaskManager::Update(v3::UpdateTaskRequest request) {
  const absl::StatusOr<ContainerPtr> found = Find(request.id());
  if (!found.ok()) co_return found.status();
  const ContainerPtr container = *found;
  auto acquire = container->control.Acquire();
  const AsyncMutex::Lock lock = co_await std::move(acquire);
  if (container->init->state == Process::State::kStopped) {
    co_return absl::FailedPreconditionError("cannot update a stopped container");
  }
  // Only annotations: nothing in the guest depends on them.
  if (request.resources().value().empty()) co_return Empty();
  // containerd sends all resources of the spec as the host has it, with every update.
  const absl::StatusOr<std::string> resources = ReducedResources(request.resources().value());
  if (!resources.ok()) co_return Annotate(resources.status(), "resources");
  const std::string file = absl::StrCat(container->directory, "/resources.json");
  MAGNETAR_CO_RETURN_IF_ERROR(WriteFileAtomically(file, *resources));
  auto update = env_.runtime->Update(container->id, file);
  const absl::Status status = co_await std::move(update);
  if (!status.ok()) co_return status;
  Tell(agent::v1::GuestEvent::UPDATED, *container);
  co_return Empty();
}

TaskManager::Result<TaskManager::Empty> TaskManager::Checkpoint(v3::CheckpointTaskRequest request) {
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  co_return absl::UnimplementedError(
      "checkpoint: the files of a checkpoint would have to leave the VM, which has no place for "
      "them");
}

TaskManager::Result<TaskManager::Empty> TaskManager::Shutdown(v3::ShutdownRequest) {
  // The sandbox ends by its controller, not with its last task.
  co_return Empty();
}

TaskManager::Result<v3::StateResponse> TaskManager::State(v3::StateRequest request) {
  const absl::StatusOr<ContainerPtr> found = Find(request.id());
  if (!found.ok()) co_return found.status();
  const ContainerPtr container = *found;
  const absl::StatusOr<ProcessPtr> process = FindProcess(*container, request.exec_id());
  if (!process.ok()) co_return process.status();
  const ProcessIo::Uris& uris = (*process)->io->uris();
  v3::StateResponse response;
  response.set_id(request.exec_id().empty() ? container->id : request.exec_id());
  response.set_exec_id(request.exec_id());
  response.set_bundle(container->host_bundle);
  response.set_pid(env_.vmm_pid());
  response.set_stdin(uris.in);
  response.set_stdout(uris.out);
  response.set_stderr(uris.err);
  response.set_terminal(uris.terminal);
  switch ((*process)->state) {
    case Process::State::kCreated:
      response.set_status(containerd::v1::types::CREATED);
      break;
    case Process::State::kRunning:
      response.set_status(container->paused ? containerd::v1::types::PAUSED
                                            : containerd::v1::types::RUNNING);
      break;
    case Process::State::kStopped:
      response.set_status(containerd::v1::types::STOPPED);
      response.set_exit_status((*process)->exit.status);
      *response.mutable_exited_at() = ToTimestamp((*process)->exit.at_ns);
      break;
  }
  co_return response;
}

// One entry for all: containerd counts what it finds at each pid on the host, and
// that is the VMM for every process. Never none, or a containerd that restarts
// deletes the task before it has told its end.
TaskManager::Result<v3::PidsResponse> TaskManager::Pids(v3::PidsRequest request) {
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  v3::PidsResponse response;
  response.add_processes()->set_pid(env_.vmm_pid());
  co_return response;
}

TaskManager::Result<v3::StatsResponse> TaskManager::Stats(v3::StatsRequest request) {
  const absl::StatusOr<ContainerPtr> found = Find(request.id());
  if (!found.ok()) co_return found.status();
  auto read = [cgroup = (*found)->cgroup] { return ReadCgroupMetrics(cgroup); };
  auto blocking = RunBlocking(*env_.counters, std::move(read));
  const auto metrics = co_await std::move(blocking);
  if (!metrics.ok()) co_return Annotate(metrics.status(), "cgroup");
  v3::StatsResponse response;
  response.mutable_stats()->set_type_url("io.containerd.cgroups.v2.Metrics");
  metrics->SerializeToString(response.mutable_stats()->mutable_value());
  co_return response;
}

TaskManager::Result<v3::ConnectResponse> TaskManager::Connect(v3::ConnectRequest request) {
  v3::ConnectResponse response;
  response.set_shim_pid(env_.vmm_pid());
  if (Find(request.id()).ok()) response.set_task_pid(env_.vmm_pid());
  co_return response;
}

std::vector<std::shared_ptr<const Container>> TaskManager::List() const {
  std::vector<std::shared_ptr<const Container>> out;
  for (const auto& [id, container] : containers_) {
    if (container->prepared) out.push_back(container);
  }
  return out;
}

void TaskManager::CheckOom(Container& container) {
  const uint64_t kills =
      ReadCgroupCounter(absl::StrCat(container.cgroup, "/memory.events"), "oom_kill");
  if (kills <= container.oom_kills) return;
  container.oom_kills = kills;
  Log(LogLevel::kInfo, "out of memory container=", container.id);
  Tell(agent::v1::GuestEvent::OOM, container);
}

void TaskManager::Tell(agent::v1::GuestEvent::Kind kind, const Container& container,
                       const Process* exec) {
  // What containerd was not told to be there neither ends nor goes.
  if (!container.created) return;
  agent::v1::GuestEvent event;
  event.set_kind(kind);
  event.set_container_id(container.id);
  if (exec != nullptr) event.set_exec_id(exec->exec_id);
  if (kind == agent::v1::GuestEvent::EXITED || kind == agent::v1::GuestEvent::DELETED) {
    const Exit& exit = exec != nullptr ? exec->exit : container.init->exit;
    event.set_exit_status(exit.status);
    event.set_exited_at_ns(exit.at_ns);
  }
  env_.host->Publish(std::move(event));
}

void TaskManager::WatchForOom(const ContainerPtr& container) {
  const std::string events = absl::StrCat(container->cgroup, "/memory.events");
  const std::weak_ptr<Container> weak = container;
  const absl::StatusOr<int> watch = env_.cgroup_events->Add(events, [this, weak] {
    const ContainerPtr alive = weak.lock();
    if (alive != nullptr) CheckOom(*alive);
  });
  if (watch.ok()) {
    container->oom_watch = *watch;
  } else {
    Log(LogLevel::kWarn, "no OOM events container=", container->id, " ", watch.status().message());
  }
}

}  // namespace magnetar::guest
