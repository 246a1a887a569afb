#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/child_process.h"

// A sandbox as it lies on disk, in `<run dir>/<id>/sandbox.json`: what a daemon
// that comes later needs in order to find it again or to take it down, and what
// magnetarctl shows. Written by rename; `schema` only grows.
namespace magnetar::daemon {

inline constexpr int kRecordSchema = 1;
inline constexpr char kRecordFile[] = "sandbox.json";
inline constexpr size_t kMaxRecordBytes = 4 << 20;

inline constexpr char kSupervisor[] = "supervisor";

struct RecordedProcess {
  std::string name;  // kSupervisor, "qemu", that of its FileShare
  ProcessIdentity identity;
  bool vmm = false;
};

// What was begun for a sandbox, in this order, and undone in the reverse one.
// An entry is written before its step is done.
enum class Step {
  kDirectory,
  kCgroup,
  kNetwork,
  kShared,
  kSupervisor,
  kGuest,  // the agent was told about the pod
};

// Something made on the host for a container; see StorageStep.
struct ContainerStep {
  std::string kind;  // "mount", "disk", "volume-disk", "volume-use"
  std::string container_id;
  std::string path;
  std::string source;
  std::string serial;
};

// What a container may use at most; 0: no limit.
struct ContainerLimits {
  std::string container_id;
  uint64_t memory_bytes = 0;
  uint64_t millicpus = 0;
};

// A NIC of the VM, in the slot "nic<slot>". The entry is written before the NIC is plugged in, and
// goes after it was unplugged.
struct RecordedNic {
  uint32_t slot = 0;
  int interface = 0;  // index, in the pod's netns, of the one that it stands for
  std::string name;   // that it had when the NIC was made, for those who read
  std::string mac;
  uint32_t mtu = 0;      // that the VMM was told: the guest's can be no larger
  bool plugged = false;  // false: half plugged in or half unplugged
};

struct Record {
  std::string id;
  std::string containerd_namespace;
  // created, starting, ready, stopping, notready
  std::string state = "created";
  std::string pod_config;  // runtime.v1.PodSandboxConfig, serialized
  std::string netns_path;
  std::string runtime_handler;
  std::string cgroup_parent;
  std::string vmm;                      // "qemu"
  std::string file_share = "virtiofs";  // vmm/file_share.h
  // Hello's of the agent, which outlives daemons.
  uint32_t agent_protocol = 0;
  std::vector<std::string> agent_features;
  uint32_t uid = 0;
  // What the VM has. The memory is what the guest has taken.
  uint32_t vcpus = 0;
  uint64_t memory_bytes = 0;
  // What it is to have, and what it can have at least and at most; 0 in the records of daemons that
  // resized nothing.
  uint32_t wanted_vcpus = 0;
  uint64_t wanted_memory_bytes = 0;
  // A resize that has begun and may not have come to its end; it may have as much memory until
  // then.
  bool resizing = false;
  uint64_t granted_memory_bytes = 0;
  uint32_t max_vcpus = 0;
  uint64_t boot_memory_bytes = 0;
  uint64_t max_memory_bytes = 0;
  // runtime.v1.LinuxContainerResources, serialized, of the last Update; without one the
  // pod_config's hold.
  bool pod_updated = false;
  std::string pod_resources;
  std::string pod_overhead;
  std::vector<ContainerLimits> container_limits;  // of those that have any
  uint32_t vmm_pid = 0;
  int64_t created_at_ns = 0;  // CLOCK_REALTIME
  int64_t started_at_ns = 0;
  int64_t exited_at_ns = 0;  // 0 while it is not over
  uint32_t exit_status = 0;
  std::string exit_reason;
  std::vector<RecordedProcess> processes;
  std::vector<Step> steps;
  std::vector<ContainerStep> container_steps;
  std::vector<RecordedNic> nics;
};

// Whether its agent has named the feature (HelloResponse in agent.proto).
bool HasFeature(const Record& record, std::string_view feature);

const char* StepName(Step step);

std::string RecordToJson(const Record& record);
// DATA_LOSS if it is no record; UNIMPLEMENTED if a newer daemon wrote it.
absl::StatusOr<Record> RecordFromJson(std::string_view json);

// The record of the sandbox in `directory`; NOT_FOUND if there is none. Blocks.
absl::StatusOr<Record> ReadRecord(const std::string& directory);
absl::Status WriteRecord(const std::string& directory, const Record& record);

// A record and its file, for one sandbox. Thread-safe; Update blocks on a small write.
class RecordFile {
 public:
  RecordFile(std::string directory, Record record)
      : directory_(std::move(directory)), record_(std::move(record)) {}

  const std::string& directory() const { return directory_; }
  Record Get() const;
  // Changes it in memory and on disk; in memory only if the disk refuses.
  absl::Status Update(const std::function<void(Record&)>& change);
  // Journals a step that is about to be done, or has been undone.
  absl::Status AddStep(Step step);
  absl::Status RemoveStep(Step step);

 private:
  const std::string directory_;
  mutable std::mutex mutex_;
  Record record_;
};

}  // namespace magnetar::daemon
