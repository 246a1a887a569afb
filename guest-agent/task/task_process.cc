// Start, Exec, Kill, Wait: the life of processes.
#include <sys/types.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <cerrno>
#include <csignal>
#include <utility>

#include "absl/strings/str_cat.h"
#include "guest-agent/task/cgroup.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/task/timestamp.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"
#include "magnetar/guest_spec.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"

namespace magnetar::guest {

namespace v3 = containerd::task::v3;

namespace {

// What a process that never ran is said to have ended with.
constexpr uint32_t kNotStartedStatus = 255;

Exit NeverRan() {
  Exit exit;
  exit.status = kNotStartedStatus;
  exit.at_ns = NowNs();
  return exit;
}

}  // namespace

absl::StatusOr<TaskManager::ContainerPtr> TaskManager::Find(const std::string& id) const {
  const auto it = containers_.find(id);
  if (it == containers_.end() || !it->second->created) {
    return absl::NotFoundError(absl::StrCat("task ", id.substr(0, 128), " not found"));
  }
  return it->second;
}

absl::StatusOr<TaskManager::ProcessPtr> TaskManager::FindProcess(const Container& container,
                                                                 const std::string& exec_id) const {
  if (exec_id.empty()) return container.init;
  const auto it = container.execs.find(exec_id);
  if (it == container.execs.end()) {
    return absl::NotFoundError(absl::StrCat("process does not exist ", exec_id.substr(0, 128)));
  }
  return it->second;
}

TaskManager::Result<v3::StartResponse> TaskManager::Start(v3::StartRequest request) {
  MAGNETAR_CO_RETURN_IF_ERROR(CheckOpen());
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  const absl::StatusOr<ProcessPtr> process = FindProcess(**container, request.exec_id());
  if (!process.ok()) co_return process.status();
  const ProcessPtr held = *process;
  auto acquire = held->mutex.Acquire();
  const AsyncMutex::Lock lock = co_await std::move(acquire);
  if (held->state == Process::State::kRunning) {
    co_return absl::FailedPreconditionError("cannot start a running process");
  }
  if (held->state == Process::State::kStopped || held->exited.IsSet()) {
    co_return absl::FailedPreconditionError("cannot start a stopped process");
  }
  MAGNETAR_CO_RETURN_IF_ERROR(CheckOpen());
  absl::Status status;
  if (request.exec_id().empty()) {
    auto start = StartInit(*container);
    status = co_await std::move(start);
  } else {
    auto start = StartExec(*container, held);
    status = co_await std::move(start);
  }
  if (!status.ok()) co_return status;
  v3::StartResponse response;
  response.set_pid(env_.vmm_pid());
  co_return response;
}

Co<absl::Status> TaskManager::StartInit(ContainerPtr container) {
  container->starting = true;
  auto start = env_.runtime->Start(container->id);
  absl::Status status = co_await std::move(start);
  if (status.ok()) Tell(agent::v1::GuestEvent::STARTED, *container);
  container->starting = false;
  container->changed.Notify();
  if (!status.ok()) {
    // What waits for its start will never run; its end completes every Wait.
    const absl::Status killed = KillCgroup(container->cgroup);
    if (!killed.ok()) Log(LogLevel::kError, "kill failed container=", container->id);
    co_return status;
  }
  // It may have ended already.
  if (container->init->state == Process::State::kCreated) {
    container->init->state = Process::State::kRunning;
  }
  co_return absl::OkStatus();
}

Co<absl::Status> TaskManager::StartExec(ContainerPtr container, ProcessPtr process) {
  if (container->init->state != Process::State::kRunning || container->init->reaped) {
    co_return absl::FailedPreconditionError(
        absl::StrCat("container ", container->id, " init process is not running"));
  }
  if (container->paused) co_return absl::FailedPreconditionError("cannot exec in a paused state");
  const std::string console = NextConsolePath();
  const std::string file = absl::StrCat(container->directory, "/exec-", process->exec_id, ".json");
  absl::Status status = WriteFileAtomically(file, process->spec);
  absl::StatusOr<ProcessStdio> stdio = process->io->Prepare(console);
  if (status.ok()) status = stdio.status();
  if (status.ok()) {
    ++container->running_execs;
    const Reaper::Window window(*env_.reaper);
    auto exec = env_.runtime->Exec(container->id, file, *std::move(stdio));
    const absl::StatusOr<pid_t> pid = co_await std::move(exec);
    status = pid.status();
    if (pid.ok()) {
      process->pid = *pid;
      process->state = Process::State::kRunning;
      status = process->io->Connect();
      Tell(agent::v1::GuestEvent::EXEC_STARTED, *container, process.get());
      WatchExec(container, process, *pid);
      // Without its terminal it is of no use, and in a pid namespace that it shares it may have
      // come after the kill of a container that has ended. Its end is reaped like any other.
      if (!status.ok() || container->init->reaped) ::kill(*pid, SIGKILL);
    } else {
      ExecLeft(container, process);
    }
  }
  RemoveFile(file).IgnoreError();
  if (!status.ok() && process->pid == 0) {
    ProcessEnded(*process, NeverRan());
    process->io->Forget();
  }
  if (status.ok() && process->caller_lost) process->io->LoseCaller();
  co_return status;
}

void TaskManager::ProcessEnded(Process& process, Exit exit) {
  // A Delete was faster.
  if (process.exited.IsSet()) return;
  process.exit = exit;
  process.state = Process::State::kStopped;
  process.io->Exited();
  process.exited.Set();
}

void TaskManager::EndUntold(Process& process) {
  if (process.exited.IsSet()) return;
  if (!process.gone.IsSet()) process.exit = NeverRan();
  process.state = Process::State::kStopped;
  process.exited.Set();
}

void TaskManager::WatchInit(ContainerPtr container, pid_t pid) {
  env_.reaper->Watch(pid, [this, container](Exit exit) {
    container->init->reaped = true;
    asio::co_spawn(executor_, InitEnded(this, container, exit), asio::detached);
  });
}

Co<void> TaskManager::InitEnded(TaskManager* self, ContainerPtr container, Exit exit) {
  // In a pid namespace of its own the others have died with it, elsewhere not.
  const absl::Status killed = KillCgroup(container->cgroup);
  if (!killed.ok()) Log(LogLevel::kError, "kill failed container=", container->id);
  // The container's end is the last one to be told.
  while (container->running_execs > 0 || container->starting) co_await container->changed.Wait();
  Process& init = *container->init;
  init.ended = Clock::now();
  init.exit = exit;
  init.gone.Set();
  // containerd hears of the end and drops what it has not read until then.
  auto delivered = init.io->WaitDelivered(init.ended);
  co_await std::move(delivered);
  // Whoever waits for the end looks for its reason next.
  self->CheckOom(*container);
  if (!init.exited.IsSet()) self->Tell(agent::v1::GuestEvent::EXITED, *container);
  self->ProcessEnded(init, exit);
  Log(LogLevel::kDebug, "container ended container=", container->id, " status=", exit.status);
}

void TaskManager::WatchExec(ContainerPtr container, ProcessPtr process, pid_t pid) {
  env_.reaper->Watch(pid, [this, container, process](Exit exit) {
    process->reaped = true;
    process->ended = Clock::now();
    ProcessEnded(*process, exit);
    Tell(agent::v1::GuestEvent::EXITED, *container, process.get());
    ExecLeft(container, process);
  });
}

void TaskManager::ExecLeft(const ContainerPtr& container, const ProcessPtr& process) {
  --container->running_execs;
  container->changed.Notify();
  if (process->caller_lost) DropLostExec(container, process);
}

void TaskManager::DropLostExec(const ContainerPtr& container, const ProcessPtr& process) {
  const auto it = container->execs.find(process->exec_id);
  if (it == container->execs.end() || it->second != process) return;
  process->io->Forget();
  EndUntold(*process);
  container->execs.erase(it);
}

void TaskManager::ConnectionLost(uint64_t connection) {
  for (const auto& [id, container] : containers_) {
    std::vector<ProcessPtr> lost;
    for (const auto& [exec_id, exec] : container->execs) {
      if (exec->connection == connection && !exec->caller_lost) lost.push_back(exec);
    }
    for (const ProcessPtr& exec : lost) {
      exec->caller_lost = true;
      Log(LogLevel::kInfo, "exec lost its caller container=", id, " exec=", exec->exec_id);
      if (exec->state == Process::State::kRunning) {
        exec->io->LoseCaller();
      } else {
        DropLostExec(container, exec);
      }
    }
  }
}

TaskManager::Result<TaskManager::Empty> TaskManager::Exec(v3::ExecProcessRequest request,
                                                          uint64_t connection) {
  MAGNETAR_CO_RETURN_IF_ERROR(CheckOpen());
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  MAGNETAR_CO_RETURN_IF_ERROR(ValidateId(request.exec_id(), "exec_id"));
  if ((*container)->execs.contains(request.exec_id())) {
    co_return absl::AlreadyExistsError(absl::StrCat("id ", request.exec_id()));
  }
  switch ((*container)->init->state) {
    case Process::State::kCreated:
      co_return absl::FailedPreconditionError("cannot exec in a created state");
    case Process::State::kStopped:
      co_return absl::FailedPreconditionError("cannot exec in a stopped state");
    case Process::State::kRunning:
      break;
  }
  if ((*container)->paused) {
    co_return absl::FailedPreconditionError("cannot exec in a paused state");
  }
  // It is made of the spec as the host has it.
  absl::StatusOr<std::string> spec = ReducedProcess(request.spec().value());
  if (!spec.ok()) co_return Annotate(spec.status(), "the exec's process");
  auto process = std::make_shared<Process>(executor_);
  process->exec_id = request.exec_id();
  process->connection = connection;
  process->spec = *std::move(spec);
  ProcessIo::Uris uris{request.stdin(), request.stdout(), request.stderr(), request.terminal()};
  auto io = ProcessIo::Open(executor_, *env_.streams, std::move(uris));
  if (!io.ok()) co_return io.status();
  process->io = *std::move(io);
  (*container)->execs[process->exec_id] = process;
  Tell(agent::v1::GuestEvent::EXEC_ADDED, **container, process.get());
  co_return Empty();
}

TaskManager::Result<TaskManager::Empty> TaskManager::Kill(v3::KillRequest request) {
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  const absl::StatusOr<ProcessPtr> process = FindProcess(**container, request.exec_id());
  if (!process.ok()) co_return process.status();
  const int signal = static_cast<int>(request.signal());
  const bool everything = request.all() && request.exec_id().empty();
  if ((*process)->pid == 0) co_return absl::FailedPreconditionError("process not created");
  if (everything) {
    const std::string& cgroup = (*container)->cgroup;
    const absl::Status status =
        signal == SIGKILL ? KillCgroup(cgroup) : SignalCgroup(cgroup, signal);
    if (!status.ok()) co_return status;
  }
  if ((*process)->state == Process::State::kStopped || (*process)->reaped) {
    co_return absl::NotFoundError("process already finished");
  }
  if (!everything && ::kill((*process)->pid, signal) != 0) {
    if (errno == ESRCH) co_return absl::NotFoundError("process already finished");
    co_return ErrnoStatus(errno, absl::StrCat("send signal ", signal));
  }
  co_return Empty();
}

TaskManager::Result<TaskManager::Empty> TaskManager::ResizePty(v3::ResizePtyRequest request) {
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  const absl::StatusOr<ProcessPtr> process = FindProcess(**container, request.exec_id());
  if (!process.ok()) co_return process.status();
  MAGNETAR_CO_RETURN_IF_ERROR((*process)->io->Resize(request.width(), request.height()));
  co_return Empty();
}

// The end of stdin comes in its stream, behind the data: closing it here would
// overtake what is still on its way on the other connection.
TaskManager::Result<TaskManager::Empty> TaskManager::CloseIO(v3::CloseIORequest request) {
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  const absl::StatusOr<ProcessPtr> process = FindProcess(**container, request.exec_id());
  if (!process.ok()) co_return process.status();
  co_return Empty();
}

TaskManager::Result<v3::WaitResponse> TaskManager::Wait(v3::WaitRequest request) {
  // A caller that is gone ends its wait without an exception.
  co_await asio::this_coro::throw_if_cancelled(false);
  const absl::StatusOr<ContainerPtr> container = Find(request.id());
  if (!container.ok()) co_return container.status();
  const absl::StatusOr<ProcessPtr> found = FindProcess(**container, request.exec_id());
  if (!found.ok()) co_return found.status();
  const ProcessPtr process = *found;
  const bool ended = co_await process->exited.Wait();
  if (!ended) co_return absl::CancelledError("the wait was cancelled");
  v3::WaitResponse response;
  response.set_exit_status(process->exit.status);
  *response.mutable_exited_at() = ToTimestamp(process->exit.at_ns);
  co_return response;
}

}  // namespace magnetar::guest
