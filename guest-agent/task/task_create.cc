// Create and Delete: how a container comes to be and how it goes away.
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/pod/pid_namespace.h"
#include "guest-agent/storage/block_devices.h"
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

}  // namespace

std::string TaskManager::NextConsolePath() {
  return absl::StrCat(env_.consoles, "/", next_console_++);
}

absl::Status TaskManager::CheckOpen() const {
  return closing_ ? absl::UnavailableError("the sandbox is being shut down") : absl::OkStatus();
}

absl::Status TaskManager::CheckWanted(const Container& container,
                                      std::optional<Clock::time_point> deadline) const {
  MAGNETAR_RETURN_IF_ERROR(CheckOpen());
  if (container.doomed) {
    return absl::CancelledError(
        absl::StrCat("container ", container.id, " was deleted while it was created"));
  }
  if (deadline.has_value() && Clock::now() >= *deadline) {
    return absl::DeadlineExceededError(
        absl::StrCat("container ", container.id, " was not created in time"));
  }
  return absl::OkStatus();
}

TaskManager::Result<v3::CreateTaskResponse> TaskManager::Create(
    v3::CreateTaskRequest request, std::optional<Clock::time_point> deadline) {
  MAGNETAR_CO_RETURN_IF_ERROR(ValidateId(request.id(), "id"));
  MAGNETAR_CO_RETURN_IF_ERROR(CheckOpen());
  if (!request.checkpoint().empty()) {
    co_return absl::FailedPreconditionError(
        "a container in a VM cannot be restored from a checkpoint");
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
  auto create = CreateContainer(container, std::move(request), deadline);
  absl::Status status = co_await std::move(create);
  if (status.ok()) status = CheckWanted(*container, deadline);
  if (status.ok()) {
    container->created = true;
    Tell(agent::v1::GuestEvent::CREATED, *container);
    // It may have been killed already.
    if (container->init->exited.IsSet()) Tell(agent::v1::GuestEvent::EXITED, *container);
    container->create_ended.Set();
    v3::CreateTaskResponse response;
    response.set_pid(pid);
    co_return response;
  }
  Log(LogLevel::kWarn, "create failed container=", id, " error=", status.ToString());
  auto dismantle = Dismantle(container);
  const absl::Status undone = co_await std::move(dismantle);
  if (undone.ok()) {
    containers_.erase(id);
  } else {
    // It stays for the Delete with which containerd answers the failure.
    Log(LogLevel::kError, "undo failed container=", id, " ", undone.ToString());
  }
  container->create_ended.Set();
  if (absl::IsUnimplemented(status)) {
    co_return absl::FailedPreconditionError(status.message());
  }
  co_return status;
}

Co<absl::Status> TaskManager::CreateContainer(ContainerPtr container, v3::CreateTaskRequest request,
                                              std::optional<Clock::time_point> deadline) {
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
  MAGNETAR_CO_RETURN_IF_ERROR(CheckWanted(*container, deadline));
  const absl::StatusOr<SpecFacts> facts = ReadSpecFacts(prepared->spec());
  if (!facts.ok()) co_return facts.status();
  container->cgroup = absl::StrCat(env_.cgroup_root, facts->cgroups_path);
  if (facts->needs_pod_pid_namespace) MAGNETAR_CO_RETURN_IF_ERROR(env_.hold_pid_namespace());
  auto target = HoldTarget(prepared->pid_namespace_of());
  if (!target.ok()) co_return target.status();

  auto set_up = [mounts = env_.mounts, id = container->id, directory = container->directory,
                 prepared = *std::move(prepared), target = *std::move(target)]() -> absl::Status {
    MAGNETAR_RETURN_IF_ERROR(MakeDirectories(directory));
    if (target != nullptr) {
      const absl::Status bound = BindPidNamespace(target->pidfd.get(), target->pid,
                                                  absl::StrCat(directory, "/pid-namespace"));
      if (!bound.ok()) {
        return absl::FailedPreconditionError(
            absl::StrCat("join container ", prepared.pid_namespace_of(), ": ", bound.message()));
      }
    }
    MAGNETAR_RETURN_IF_ERROR(mounts->MountAll(id, prepared));
    const absl::StatusOr<std::string> spec = SpecWithDisks(prepared, DiskNumber);
    if (!spec.ok()) return spec.status();
    return WriteFileAtomically(absl::StrCat(directory, "/config.json"), *spec);
  };
  auto blocking = RunBlocking(*env_.blocking, std::move(set_up));
  const absl::Status status = co_await std::move(blocking);
  if (!status.ok()) co_return status;
  MAGNETAR_CO_RETURN_IF_ERROR(CheckWanted(*container, deadline));
  auto run = RunCreate(container);
  co_return co_await std::move(run);
}

// The first process of the container whose processes another is to see; nullptr if `id` is empty.
absl::StatusOr<std::shared_ptr<const TaskManager::Target>> TaskManager::HoldTarget(
    const std::string& id) const {
  if (id.empty()) return nullptr;
  const auto found = containers_.find(id);
  const Process* init = found == containers_.end() ? nullptr : found->second->init.get();
  if (init == nullptr || init->pid == 0 || init->reaped) {
    return absl::FailedPreconditionError(
        absl::StrCat("container ", id, ", whose processes this one is to see, does not run"));
  }
  auto target = std::make_shared<Target>();
  target->pid = init->pid;
  target->pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, init->pid, 0)));
  if (!target->pidfd.ok()) return ErrnoStatus(errno, "pidfd_open");
  return target;
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
  if (container->oom_watch >= 0) {
    env_.cgroup_events->Remove(std::exchange(container->oom_watch, -1));
  }
  if (!container->cgroup.empty()) {
    auto stop = StopProcesses(container);
    const absl::Status stopped = co_await std::move(stop);
    if (!stopped.ok()) co_return stopped;
  }
  const bool untold = container->init->pid != 0 && !container->init->exited.IsSet();
  EndUntold(*container->init);
  if (untold) Tell(agent::v1::GuestEvent::EXITED, *container);
  if (container->init->io != nullptr) container->init->io->Forget();
  if (!container->prepared) co_return absl::OkStatus();
  auto clear = [mounts = env_.mounts, id = container->id,
                directory = container->directory]() -> absl::Status {
    MAGNETAR_RETURN_IF_ERROR(mounts->UnmountAll(id));
    return RemoveTree(directory);
  };
  auto blocking = RunBlocking(*env_.blocking, std::move(clear));
  const absl::Status cleared = co_await std::move(blocking);
  // The host takes away what the guest still uses as soon as it is told to release it.
  if (!cleared.ok()) co_return cleared;
  // Of a container that is released the host believes nothing any more.
  Tell(agent::v1::GuestEvent::DELETED, *container);
  auto release = env_.host->Release(container->id);
  co_await std::move(release);
  container->prepared = false;
  auto forget = [mounts = env_.mounts, id = container->id]() -> absl::Status {
    mounts->Forget(id);
    return absl::OkStatus();
  };
  auto forgetting = RunBlocking(*env_.blocking, std::move(forget));
  co_return co_await std::move(forgetting);
}

Co<absl::Status> TaskManager::StopProcesses(ContainerPtr container) {
  const absl::Status killed = KillCgroup(container->cgroup);
  if (!killed.ok()) co_return killed;
  if (container->init->pid != 0) {
    const bool ended = co_await container->init->gone.WaitFor(kKillTimeout);
    if (!ended) co_return absl::DeadlineExceededError("the container's process does not end");
  }
  auto remove = env_.runtime->Delete(container->id);
  const absl::Status removed = co_await std::move(remove);
  if (removed.ok()) co_return absl::OkStatus();
  // What the runtime keeps of a container in which nothing runs hurts nobody.
  const absl::StatusOr<std::vector<int>> left = CgroupPids(container->cgroup);
  if (left.ok() && !left->empty()) co_return removed;
  Log(LogLevel::kWarn, "the runtime keeps a container container=", container->id,
      " error=", removed.ToString());
  co_return absl::OkStatus();
}

TaskManager::Result<v3::DeleteResponse> TaskManager::Delete(v3::DeleteRequest request) {
  const auto unfinished = containers_.find(request.id());
  if (unfinished != containers_.end() && !unfinished->second->created &&
      request.exec_id().empty()) {
    auto remove = DeleteUnfinished(unfinished->second);
    co_return co_await std::move(remove);
  }
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

// containerd deletes a task whose Create it does not wait for any more, and forgets it.
Co<absl::StatusOr<v3::DeleteResponse>> TaskManager::DeleteUnfinished(ContainerPtr container) {
  container->doomed = true;
  co_await container->create_ended.Wait();
  auto acquire = container->init->mutex.Acquire();
  const AsyncMutex::Lock lock = co_await std::move(acquire);
  auto remove = DeleteInit(container);
  co_return co_await std::move(remove);
}

Co<absl::StatusOr<v3::DeleteResponse>> TaskManager::DeleteInit(ContainerPtr container) {
  // Another Delete was faster, or the end of a Create.
  const auto found = containers_.find(container->id);
  if (found == containers_.end() || found->second != container) {
    co_return absl::NotFoundError(absl::StrCat("task ", container->id, " not found"));
  }
  if (container->init->state == Process::State::kStopped) {
    auto delivered = container->init->io->WaitDelivered(container->init->ended);
    co_await std::move(delivered);
    container->init->io->Forget();
  }
  auto dismantle = Dismantle(container);
  const absl::Status status = co_await std::move(dismantle);
  if (!status.ok()) {
    Log(LogLevel::kError, "delete failed container=", container->id, " error=", status.ToString());
    co_return status;
  }
  for (const auto& [exec_id, exec] : container->execs) {
    exec->io->Forget();
    EndUntold(*exec);
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
    auto delivered = process->io->WaitDelivered(process->ended);
    co_await std::move(delivered);
  }
  process->io->Forget();
  const bool untold = !process->exited.IsSet();
  EndUntold(*process);
  const auto found = container->execs.find(process->exec_id);
  if (found != container->execs.end() && found->second == process) container->execs.erase(found);
  if (untold) {
    // The answers to its Waits go first: containerd gives them up with this one, and logs an error
    // for each that comes later (ttrpc's client.go, "received message on inactive stream").
    auto turn = asio::post(executor_, asio::use_awaitable);
    co_await std::move(turn);
  }
  v3::DeleteResponse response;
  response.set_pid(env_.vmm_pid());
  response.set_exit_status(process->exit.status);
  *response.mutable_exited_at() = ToTimestamp(process->exit.at_ns);
  co_return response;
}

// The containers that go away side by side.
struct TaskManager::Closing {
  Closing(const asio::any_io_executor& executor, size_t count, Clock::time_point d)
      : left(count), kill_deadline(d), done(executor) {}

  size_t left;
  const Clock::time_point kill_deadline;
  absl::Status first;
  // Told when `left` is 0.
  Event done;
};

Co<void> TaskManager::CloseContainer(TaskManager* self, ContainerPtr container,
                                     std::shared_ptr<Closing> closing) {
  absl::Status status;
  if (!container->create_ended.IsSet()) {
    // Its Create undoes it as soon as it looks.
    const bool ended = co_await container->create_ended.WaitUntil(closing->kill_deadline);
    if (!ended) status = absl::DeadlineExceededError("it is still being created");
  } else if (container->init->pid != 0) {
    const bool ended = co_await container->init->gone.WaitUntil(closing->kill_deadline);
    if (!ended) status = absl::DeadlineExceededError("its process does not end");
  }
  if (status.ok() && container->prepared) {
    auto clear = [mounts = self->env_.mounts, id = container->id] {
      return mounts->UnmountAll(id);
    };
    auto blocking = RunBlocking(*self->env_.blocking, std::move(clear));
    status = co_await std::move(blocking);
  }
  if (status.ok() && container->init->pid != 0) {
    // So that its end is told, and its last output with it, before the machine goes.
    const bool told = co_await container->init->exited.WaitUntil(closing->kill_deadline);
    if (!told) Log(LogLevel::kWarn, "its last output is not read container=", container->id);
  }
  if (!status.ok()) {
    Log(LogLevel::kError, "not closed container=", container->id, " error=", status.ToString());
    if (closing->first.ok()) closing->first = Annotate(status, container->id);
  }
  if (--closing->left == 0) closing->done.Set();
}

Co<absl::Status> TaskManager::Close(Clock::time_point deadline) {
  closing_ = true;
  const std::map<std::string, ContainerPtr> all = containers_;
  for (const auto& [id, container] : all) {
    if (container->cgroup.empty()) continue;
    const absl::Status killed = KillCgroup(container->cgroup);
    if (!killed.ok()) Log(LogLevel::kError, "kill failed container=", id, " ", killed.message());
  }
  // What does not end at once is stuck in the kernel and must not use up the others' time.
  const auto now = Clock::now();
  auto closing = std::make_shared<Closing>(executor_, all.size(), now + (deadline - now) / 2);
  for (const auto& [id, container] : all) {
    asio::co_spawn(executor_, CloseContainer(this, container, closing), asio::detached);
  }
  if (all.empty()) co_return absl::OkStatus();
  const bool done = co_await closing->done.WaitUntil(deadline);
  if (!done) {
    co_return absl::DeadlineExceededError(
        absl::StrCat(closing->left, " containers are not unmounted"));
  }
  co_return closing->first;
}

}  // namespace magnetar::guest
