#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cri/runtime.pb.h"
#include "src/ctl/memory.h"
#include "src/daemon/sandbox/record.h"

// What the run directory tells of the sandboxes, with or without a daemon.
namespace magnetar::ctl {

struct ProcessView {
  std::string name;
  int pid = 0;
  bool vmm = false;
  bool alive = false;
  Memory memory;  // zero unless it is alive and may be read
};

struct SandboxView {
  std::string directory;
  daemon::Record record;
  runtime::v1::PodSandboxConfig pod;
  // The record's, but "notready" once the VM is gone, as the daemon will find it.
  std::string state;
  std::vector<ProcessView> processes;
  // From the record or, if the daemon was not there to see it, from the supervisor's exit.json.
  bool exited = false;
  uint32_t exit_status = 0;
  int64_t exited_at_ns = 0;
  std::string exit_reason;

  uint64_t pss() const;
};

struct SandboxList {
  std::vector<SandboxView> sandboxes;  // oldest first
  // Directories whose record cannot be read, and why.
  std::vector<std::string> problems;
};

// NOT_FOUND if there is no run directory; PERMISSION_DENIED needs root.
absl::StatusOr<SandboxList> ListSandboxes(const std::string& run_dir);

// The sandbox whose id begins with `prefix`. NOT_FOUND; INVALID_ARGUMENT if several do.
absl::StatusOr<SandboxView> FindSandbox(const std::string& run_dir, const std::string& prefix);

}  // namespace magnetar::ctl
