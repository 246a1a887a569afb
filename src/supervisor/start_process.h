#pragma once

#include "absl/status/statusor.h"
#include "magnetar/child_process.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::supervisor {

struct Started {
  ChildProcess process;
  // Read ends, non-blocking.
  UniqueFd out;
  UniqueFd err;
};

// Starts a process as Launch describes it: its netns and cgroups entered, limits
// set, the supervisor's protection from the OOM killer given up, uid dropped, capabilities bounded,
// no_new_privs, killed when this process dies. By fork, so only in a process with one thread. The
// status tells which step failed in the child.
absl::StatusOr<Started> StartProcess(const v1::Process& spec);

}  // namespace magnetar::supervisor
