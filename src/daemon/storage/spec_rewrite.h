#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/daemon/storage/mount_calls.h"
#include "src/daemon/storage/requested_device.h"

// An OCI runtime spec that containerd made for this host, rewritten for a guest.
// Pure: no file is looked at. Facts: OCI runtime-spec 1.1 (config.md, config-linux.md), and
// what containerd's CRI writes (internal/cri/opts/spec_linux_opts.go of 2.1.9).
namespace magnetar::daemon {

struct SpecRequest {
  std::string sandbox_id;
  std::string container_id;
  std::string guest_rootfs;  // where the root filesystem is in the guest
  std::string guest_mounts;  // directory in the guest in which bind mount N is "m<N>"
  // The pod's own files in the guest; empty: none.
  std::string guest_hostname, guest_hosts, guest_resolv_conf, guest_shm;
  // Binds, by their index in the spec's mounts, of what the guest itself holds, and where.
  std::map<size_t, std::string> guest_volumes;
  // Whether a pid namespace with a path is the pod's; else it is another container's.
  bool pod_shares_pids = true;
  // What CRI's configuration of the container asks for, by name.
  std::vector<RequestedDevice> devices;
  std::vector<HugePageLimit> huge_page_limits;
  // In the guest, of the container whose processes this one is to see; empty: of none.
  std::string target_pid_namespace;
};

// A file or directory of the host to bind at `name` in the container's shared directory.
struct HostBind {
  size_t index = 0;  // in the spec's mounts
  std::string name;  // "m<index>"
  std::string source;
  std::string destination;
  bool recursive = false;
  TreeOptions::ReadOnly read_only = TreeOptions::ReadOnly::kNo;
  // Later mounts below the source appear, too (rslave); never if read-only.
  bool follow_host = false;
};

// A block device of the host that becomes a disk of the VM.
struct BlockDevice {
  size_t index = 0;       // in the spec's linux.devices
  std::string name;       // for messages: "linux.devices[2] /dev/xvda"
  std::string host_path;  // as the container's configuration has it
  dev_t number = 0;       // the host's, as containerd found it when the container was made
  std::string access;     // of "rwm"

  bool read_only() const { return access.find('w') == std::string::npos; }
};

// Huge pages that the guest is to have for the container.
struct HugePages {
  uint64_t page_size = 0;
  uint64_t bytes = 0;
  std::string field;  // for messages
};

struct RewrittenSpec {
  std::string json;
  std::vector<HostBind> binds;
  std::vector<BlockDevice> devices;
  std::vector<HugePages> huge_pages;
  // What has no meaning in a guest and was left out: "process.apparmorProfile".
  std::vector<std::string> dropped;
};

// INVALID_ARGUMENT: no valid spec, or a mount type nobody knows. FAILED_PRECONDITION: something
// a VM cannot give. Both name the field; a mount or a device by its index and its path in the
// container.
absl::StatusOr<RewrittenSpec> RewriteSpec(const std::string& spec_json, const SpecRequest& request);

}  // namespace magnetar::daemon
