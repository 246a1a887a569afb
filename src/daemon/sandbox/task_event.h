#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"

namespace magnetar::daemon {

// A task event as containerd's own shims publish it.
struct TaskEvent {
  std::string topic;     // "/tasks/exit"
  std::string type_url;  // "containerd.events.TaskExit"
  std::string body;      // serialized
};

// What a guest tells of its containers, as containerd's event. Every process has the VMM's pid, as
// in the Task API. Bundle, root file system and stdio of a creation are left out: they are paths of
// the host, of which a guest has nothing to say. A guest's time that lies in the future becomes
// `now_ns`, nanoseconds since the epoch.
// INVALID_ARGUMENT for a kind that this daemon does not know, or without what the kind needs.
// Facts: containerd 2.1 core/runtime/events.go, api/events/task.proto and
// cmd/containerd-shim-runc-v2/task/service.go.
absl::StatusOr<TaskEvent> ToTaskEvent(const agent::v1::GuestEvent& event, uint32_t vmm_pid,
                                      int64_t now_ns);

}  // namespace magnetar::daemon
