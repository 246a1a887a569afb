#include "src/daemon/sandbox/task_event.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "containerd/events.pb.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

namespace events = containerd::events;
using agent::v1::GuestEvent;

constexpr int64_t kSecondNs = 1000000000;

struct Subject {
  const GuestEvent& event;
  uint32_t pid;
  int64_t now_ns;
};

wire::Timestamp ExitTime(const Subject& s) {
  const int64_t ns = std::clamp<int64_t>(s.event.exited_at_ns(), 0, s.now_ns);
  wire::Timestamp out;
  out.set_seconds(ns / kSecondNs);
  out.set_nanos(static_cast<int32_t>(ns % kSecondNs));
  return out;
}

template <typename Message>
TaskEvent Make(const char* topic, const char* name, const Message& message) {
  return {absl::StrCat("/tasks/", topic), absl::StrCat("containerd.events.", name),
          message.SerializeAsString()};
}

// Of a message that says nothing but whose it is.
template <typename Message>
TaskEvent Bare(const char* topic, const char* name, const Subject& s) {
  Message out;
  out.set_container_id(s.event.container_id());
  return Make(topic, name, out);
}

template <typename Message>
TaskEvent WithPid(const char* topic, const char* name, const Subject& s) {
  Message out;
  out.set_container_id(s.event.container_id());
  out.set_pid(s.pid);
  return Make(topic, name, out);
}

TaskEvent Exited(const Subject& s) {
  events::TaskExit out;
  out.set_container_id(s.event.container_id());
  out.set_id(s.event.exec_id().empty() ? s.event.container_id() : s.event.exec_id());
  out.set_pid(s.pid);
  out.set_exit_status(s.event.exit_status());
  *out.mutable_exited_at() = ExitTime(s);
  return Make("exit", "TaskExit", out);
}

TaskEvent Deleted(const Subject& s) {
  events::TaskDelete out;
  out.set_container_id(s.event.container_id());
  out.set_pid(s.pid);
  out.set_exit_status(s.event.exit_status());
  *out.mutable_exited_at() = ExitTime(s);
  return Make("delete", "TaskDelete", out);
}

TaskEvent ExecAdded(const Subject& s) {
  events::TaskExecAdded out;
  out.set_container_id(s.event.container_id());
  out.set_exec_id(s.event.exec_id());
  return Make("exec-added", "TaskExecAdded", out);
}

TaskEvent ExecStarted(const Subject& s) {
  events::TaskExecStarted out;
  out.set_container_id(s.event.container_id());
  out.set_exec_id(s.event.exec_id());
  out.set_pid(s.pid);
  return Make("exec-started", "TaskExecStarted", out);
}

}  // namespace

absl::StatusOr<TaskEvent> ToTaskEvent(const GuestEvent& event, uint32_t vmm_pid, int64_t now_ns) {
  const bool of_exec =
      event.kind() == GuestEvent::EXEC_ADDED || event.kind() == GuestEvent::EXEC_STARTED;
  if (of_exec || !event.exec_id().empty()) {
    MAGNETAR_RETURN_IF_ERROR(ValidateId(event.exec_id(), "exec_id"));
  }
  const Subject subject{event, vmm_pid, now_ns};
  switch (event.kind()) {
    case GuestEvent::OOM:
      return Bare<events::TaskOOM>("oom", "TaskOOM", subject);
    case GuestEvent::CREATED:
      return WithPid<events::TaskCreate>("create", "TaskCreate", subject);
    case GuestEvent::STARTED:
      return WithPid<events::TaskStart>("start", "TaskStart", subject);
    case GuestEvent::EXITED:
      return Exited(subject);
    case GuestEvent::DELETED:
      return Deleted(subject);
    case GuestEvent::EXEC_ADDED:
      return ExecAdded(subject);
    case GuestEvent::EXEC_STARTED:
      return ExecStarted(subject);
    case GuestEvent::PAUSED:
      return Bare<events::TaskPaused>("paused", "TaskPaused", subject);
    case GuestEvent::RESUMED:
      return Bare<events::TaskResumed>("resumed", "TaskResumed", subject);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("an event of kind ", static_cast<int>(event.kind())));
  }
}

}  // namespace magnetar::daemon
