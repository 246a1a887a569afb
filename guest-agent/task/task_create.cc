// Create and Delete: how a container comes to be and how it goes away.
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/cgroup.h"
#include "guest-agent/task/spec.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/task/timestamp.h"
#include "guest-agent/util/log.h"
#include "magnetar/blocking.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"

namespace magnetar::guest {

namespace v3 = containerd::task::v3;

namespace {

// How long a killed process may take to be gone; more means a stuck kernel.
constexpr auto kKillTimeout = std::chrono::seconds(10);

absl::Status WriteBundle(const std::string& directory, const std::string& config) {
  MAGNETAR_RETURN_IF_ERROR(MakeDirectories(directory));
  return WriteFileAtomically(absl::StrCat(directory, "/config.json"), config);
}

}  // namespace

std::string TaskManager::NextConsolePath() {
  return absl::StrCat(env_.consoles, "/", next_console_++);
}

TaskManager::Result<v3::CreateTaskResponse> TaskManager::Create(v3::CreateTaskRequest request) {
  MAGNETAR_CO_RETURN_IF_ERROR(ValidateId(request.id(), "id"));
  if (!request.checkpoint().empty()) {
    co_return absl::UnimplementedError("a container in a VM cannot be restored from a checkpoint");
  }
  const uint32_t pid = env_.vmm_pid();
  if (pid == 0) co_return absl::FailedPreconditionError("the sandbox is not set up");
  const std::string id = request.id();
  if (containers_.contains(id)) {
    co_return absl::AlreadyExistsError(absl::StrCat("task ", id, " already exists"));
  }
  auto container = std::make_shared<Container>(executor_);
  container->id = id;
  container->host_bundle = request.bundle();
  container->directory = absl::StrCat(env_.containers, "/", id);
  containers_[id] = container;
  auto create = CreateContainer(container, std::move(request));
  const absl::Status status = co_await std::move(create);
  if (!status.ok()) {
    Log(LogLevel::kWarn, "create failed container=", id, " error=", status.ToString());
    auto dismantle = Dismantle(container);
    const absl::Status undone = co_await std::move(dismantle);
    if (!undone.ok()) Log(LogLevel::kError, "undo failed container=", id, " ", undone.ToString());
    containers_.erase(id);
    co_return status;
  }
  container->created = true;
  v3::CreateTaskResponse response;
  response.set_pid(pid);
  co_return response;
}

Co<absl::Status> TaskManager::CreateContainer(ContainerPtr container,
                                              v3::CreateTaskRequest request) {
  ProcessIo::Uris uris{request.stdin(), request.stdout(), request.stderr(), request.terminal()};
  auto io = ProcessIo::Open(executor_, *env_.streams, std::move(uris));
  if (!io.ok()) co_return io.status();
  container->init->io = *std::move(io);

  std::vector<std::string> mount_types;
  for (const auto& mount : request.rootfs()) mount_types.push_back(mount.type());
  container->prepared = true;
  auto prepare = env_.host->Prepare(container->id, std::move(mount_types));
  auto prepared = co_await std::move(prepare);
  if (!prepared.ok()) co_return prepared.status();
  const absl::StatusOr<SpecFacts> facts = ReadSpecFacts(prepared->spec());
  if (!facts.ok()) co_return facts.status();
  container->cgroup = absl::StrCat(env_.cgroup_root, facts->cgroups_path);
  container->shared_pid_namespace = facts->shared_pid_namespace;
  if (facts->needs_pod_pid_namespace) MAGNETAR_CO_RETURN_IF_ERROR(env_.hold_pid_namespace());

  auto set_up = [mounts = env_.mounts, id = container->id, directory = container->directory,
                 prepared = *std::move(prepared)]() -> absl::Status {
    MAGNETAR_RETURN_IF_ERROR(WriteBundle(directory, prepared.spec()));
    const std::vector<agent::v1::Storage> storages(prepared.storages().begin(),
                                                   prepared.storages().end());
    return mounts->MountAll(id, storages);
  };
  auto blocking = RunBlocking(*env_.blocking, std::move(set_up));
  const absl::Status status = co_await std::move(blocking);
  if (!status.ok()) co_return status;
  auto run = RunCreate(container);
  co_return co_await std::move(run);
}

Co<absl::Status> TaskManager::RunCreate(ContainerPtr container) {
  absl::StatusOr<ProcessStdio> stdio = container->init->io->Prepare(NextConsolePath());
  if (!stdio.ok()) co_return stdio.status();
  const Reaper::Window window(*env_.reaper);
  auto create = env_.runtime->Create(container->id, container->directory, *std::move(stdio));
  const absl::StatusOr<pid_t> pid = co_await std::move(create);
  if (!pid.ok()) co_return pid.status();
  container->init->pid = *pid;
  WatchInit(container, *pid);
  WatchForOom(container);
  co_return container->init->io->Connect();
}

Co<absl::Status> TaskManager::Dismantle(ContainerPtr container) {
  absl::Status first;
  auto note = [&first](const absl::Status& status) {
    if (first.ok()) first = status;
  };
  if (container->oom_watch >= 0) {
    env_.cgroup_events->Remove(std::exchange(container->oom_watch, -1));
  }
  if (!container->cgroup.empty()) {
    note(KillCgroup(container->cgroup));
    if (container->init->pid != 0) {
      const bool ended = co_await container->init->exited.WaitFor(kKillTimeout);
      if (!ended) note(absl::DeadlineExceededError("the container's process does not end"));
    }
    auto remove = env_.runtime->Delete(container->id);
    note(co_await std::move(remove));
  }
  container->init->exited.Set();
  if (container->init->io != nullptr) container->init->io->Forget();
  if (container->prepared) {
    auto clear = [mounts = env_.mounts, id = container->id,
                  directory = container->directory]() -> absl::Status {
      MAGNETAR_RETURN_IF_ERROR(mounts->UnmountAll(id));
      return RemoveTree(directory);
    };
    auto blocking = RunBlocking(*env_.blocking, std::move(clear));
    note(co_await std::move(blocking));
    auto release = env_.host->Release(container->id);
    co_await std::move(release);
  }
  co_return first;
}

TaskManager::Result<v3::DeleteResponse> TaskManager::Delete(v3::DeleteRequest request) {
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  const absl::StatusOr<ProcessPtr> process = FindProcess(**container, request.exec_id());
  if (!process.ok()) co_return process.status();
  const ProcessPtr held = *process;
  auto acquire = held->mutex.Acquire();
  const AsyncMutex::Lock lock = co_await std::move(acquire);
  if (held->state == Process::State::kRunning) {
    co_return absl::FailedPreconditionError("cannot delete a running process");
  }
  if (request.exec_id().empty()) {
    auto remove = DeleteInit(*container);
    co_return co_await std::move(remove);
  }
  auto remove = DeleteExec(*container, held);
  co_return co_await std::move(remove);
}

Co<absl::StatusOr<v3::DeleteResponse>> TaskManager::DeleteInit(ContainerPtr container) {
  // Another Delete was faster.
  const auto found = containers_.find(container->id);
  if (found == containers_.end() || found->second != container) {
    co_return absl::NotFoundError(absl::StrCat("task ", container->id, " not found"));
  }
  if (container->init->state == Process::State::kStopped) {
    auto finish = container->init->io->Finish();
    co_await std::move(finish);
  }
  auto dismantle = Dismantle(container);
  const absl::Status status = co_await std::move(dismantle);
  // The host has been told, so there is nothing to come back to.
  if (!status.ok()) {
    Log(LogLevel::kError, "delete left something container=", container->id,
        " error=", status.ToString());
  }
  for (const auto& [exec_id, exec] : container->execs) {
    exec->io->Forget();
    exec->exited.Set();
  }
  containers_.erase(container->id);
  v3::DeleteResponse response;
  response.set_pid(env_.vmm_pid());
  response.set_exit_status(container->init->exit.status);
  *response.mutable_exited_at() = ToTimestamp(container->init->exit.at_ns);
  co_return response;
}

Co<absl::StatusOr<v3::DeleteResponse>> TaskManager::DeleteExec(ContainerPtr container,
                                                               ProcessPtr process) {
  if (process->state == Process::State::kStopped) {
    auto finish = process->io->Finish();
    co_await std::move(finish);
  }
  process->io->Forget();
  process->exited.Set();
  const auto found = container->execs.find(process->exec_id);
  if (found != container->execs.end() && found->second == process) container->execs.erase(found);
  v3::DeleteResponse response;
  response.set_pid(env_.vmm_pid());
  response.set_exit_status(process->exit.status);
  *response.mutable_exited_at() = ToTimestamp(process->exit.at_ns);
  co_return response;
}

Co<void> TaskManager::DeleteAll() {
  const std::map<std::string, ContainerPtr> all = containers_;
  for (const auto& [id, container] : all) {
    if (!container->cgroup.empty()) {
      const absl::Status killed = KillCgroup(container->cgroup);
      if (!killed.ok()) Log(LogLevel::kError, "kill failed container=", id, " ", killed.message());
    }
  }
  for (const auto& [id, container] : all) {
    if (container->init->pid != 0) co_await container->init->exited.WaitFor(kKillTimeout);
    auto clear = [mounts = env_.mounts, name = id] { return mounts->UnmountAll(name); };
    auto blocking = RunBlocking(*env_.blocking, std::move(clear));
    const absl::Status status = co_await std::move(blocking);
    if (!status.ok()) Log(LogLevel::kError, "unmount failed container=", id, " ", status.message());
  }
}

}  // namespace magnetar::guest
