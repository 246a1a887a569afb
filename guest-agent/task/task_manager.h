#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "containerd/task.pb.h"
#include "guest-agent/agent/host_link.h"
#include "guest-agent/init/reaper.h"
#include "guest-agent/storage/container_mounts.h"
#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/task/cgroup_events.h"
#include "guest-agent/task/container.h"
#include "guest-agent/task/oci_runtime.h"

namespace magnetar::guest {

// What the tasks stand on. Everything outlives the manager.
struct TaskEnvironment {
  OciRuntime* runtime = nullptr;
  Reaper* reaper = nullptr;
  StreamRegistry* streams = nullptr;
  HostLink* host = nullptr;
  ContainerMounts* mounts = nullptr;
  CgroupEvents* cgroup_events = nullptr;
  // For mounts and unmounts.
  asio::thread_pool* blocking = nullptr;
  // For what only reads counters, and must not queue behind a mount.
  asio::thread_pool* counters = nullptr;
  // The VMM's pid on the host, which stands for every process; 0 before the pod is set up.
  std::function<uint32_t()> vmm_pid;
  // Makes the pod's pid namespace available at kPodPidNamespace.
  std::function<absl::Status()> hold_pid_namespace;
  std::string containers = "/run/magnetar/containers";
  std::string consoles = "/run/magnetar/tty";
  std::string cgroup_root = "/sys/fs/cgroup";
};

// The containers of the pod: what the Task API does, one method per call, with
// the codes of containerd's own shim (cmd/containerd-shim-runc-v2 of 2.1.9).
// One thread. Calls must not be cancelled half-way, Wait alone may be.
class TaskManager {
 public:
  template <typename T>
  using Result = Co<absl::StatusOr<T>>;
  using Empty = wire::Empty;
  using Clock = std::chrono::steady_clock;

  TaskManager(const asio::any_io_executor& executor, TaskEnvironment environment)
      : executor_(executor), env_(std::move(environment)) {}
  TaskManager(const TaskManager&) = delete;
  TaskManager& operator=(const TaskManager&) = delete;

  // task_create.cc
  // What is not there by `deadline`, when its caller stops waiting, is undone. Never
  // UNIMPLEMENTED, at which containerd would fall back to an older Task service.
  Result<containerd::task::v3::CreateTaskResponse> Create(
      containerd::task::v3::CreateTaskRequest request,
      std::optional<Clock::time_point> deadline = std::nullopt);
  // A container that is being created is undone, and then NOT_FOUND. An error leaves the
  // container as far as it still exists, for another Delete.
  Result<containerd::task::v3::DeleteResponse> Delete(containerd::task::v3::DeleteRequest request);
  // For the end of the sandbox: refuses new containers and processes from here on, kills every
  // container and unmounts those whose processes have ended. Returns at `deadline` at the latest;
  // an error says what is left.
  Co<absl::Status> Close(Clock::time_point deadline);

  // task_process.cc
  Result<containerd::task::v3::StartResponse> Start(containerd::task::v3::StartRequest request);
  // `connection` is the caller's; see ConnectionLost().
  Result<Empty> Exec(containerd::task::v3::ExecProcessRequest request, uint64_t connection);
  Result<Empty> Kill(containerd::task::v3::KillRequest request);
  Result<Empty> ResizePty(containerd::task::v3::ResizePtyRequest request);
  Result<Empty> CloseIO(containerd::task::v3::CloseIORequest request);
  Result<containerd::task::v3::WaitResponse> Wait(containerd::task::v3::WaitRequest request);
  // A containerd that has died deletes none of its execs: they lose their caller,
  // and are forgotten when they end.
  void ConnectionLost(uint64_t connection);

  // task_control.cc
  Result<Empty> Pause(containerd::task::v3::PauseRequest request);
  Result<Empty> Resume(containerd::task::v3::ResumeRequest request);
  Result<Empty> Update(containerd::task::v3::UpdateTaskRequest request);
  Result<Empty> Checkpoint(containerd::task::v3::CheckpointTaskRequest request);
  Result<Empty> Shutdown(containerd::task::v3::ShutdownRequest request);
  Result<containerd::task::v3::StateResponse> State(containerd::task::v3::StateRequest request);
  Result<containerd::task::v3::PidsResponse> Pids(containerd::task::v3::PidsRequest request);
  Result<containerd::task::v3::StatsResponse> Stats(containerd::task::v3::StatsRequest request);
  Result<containerd::task::v3::ConnectResponse> Connect(
      containerd::task::v3::ConnectRequest request);

  // For a daemon that comes back: all containers of which the host may hold something, those
  // that are being created among them.
  std::vector<std::shared_ptr<const Container>> List() const;

 private:
  using ContainerPtr = std::shared_ptr<Container>;
  using ProcessPtr = std::shared_ptr<Process>;

  // NOT_FOUND, also while Create is under way.
  absl::StatusOr<ContainerPtr> Find(const std::string& id) const;
  absl::StatusOr<ProcessPtr> FindProcess(const Container& container,
                                         const std::string& exec_id) const;

  // Whether someone still wants what is being created.
  absl::Status CheckWanted(const Container& container,
                           std::optional<Clock::time_point> deadline) const;
  absl::Status CheckOpen() const;
  Co<absl::Status> CreateContainer(ContainerPtr container,
                                   containerd::task::v3::CreateTaskRequest request,
                                   std::optional<Clock::time_point> deadline);
  // A process that may end meanwhile.
  struct Target {
    pid_t pid = 0;
    UniqueFd pidfd;
  };
  absl::StatusOr<std::shared_ptr<const Target>> HoldTarget(const std::string& id) const;
  Co<absl::Status> RunCreate(ContainerPtr container);
  // Undoes whatever of a container exists, the host's part last, and only after all of the
  // guest's. Repeatable.
  Co<absl::Status> Dismantle(ContainerPtr container);
  Co<absl::Status> StopProcesses(ContainerPtr container);
  struct Closing;
  static Co<void> CloseContainer(TaskManager* self, ContainerPtr container,
                                 std::shared_ptr<Closing> closing);
  Co<absl::StatusOr<containerd::task::v3::DeleteResponse>> DeleteUnfinished(ContainerPtr container);
  Co<absl::StatusOr<containerd::task::v3::DeleteResponse>> DeleteInit(ContainerPtr container);
  Co<absl::StatusOr<containerd::task::v3::DeleteResponse>> DeleteExec(ContainerPtr container,
                                                                      ProcessPtr process);
  Co<absl::Status> StartExec(ContainerPtr container, ProcessPtr process);
  Co<absl::Status> StartInit(ContainerPtr container);
  std::string NextConsolePath();

  void WatchInit(ContainerPtr container, pid_t pid);
  void WatchExec(ContainerPtr container, ProcessPtr process, pid_t pid);
  static Co<void> InitEnded(TaskManager* self, ContainerPtr container, Exit exit);
  void ProcessEnded(Process& process, Exit exit);
  // Completes the waits for a process that will not run any more and whose end nobody told.
  static void EndUntold(Process& process);
  void ExecLeft(const ContainerPtr& container, const ProcessPtr& process);
  void DropLostExec(const ContainerPtr& container, const ProcessPtr& process);
  // Tells containerd, through the host: of the container, or of an exec in it.
  void Tell(agent::v1::GuestEvent::Kind kind, const Container& container,
            const Process* exec = nullptr);
  void WatchForOom(const ContainerPtr& container);
  // Tells the host of kills that it does not know of.
  void CheckOom(Container& container);

  asio::any_io_executor executor_;
  const TaskEnvironment env_;
  std::map<std::string, ContainerPtr> containers_;
  uint64_t next_console_ = 1;
  bool closing_ = false;
};

}  // namespace magnetar::guest
