#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/supervisor.pb.h"
#include "magnetar/unique_fd.h"

// The one interface to a virtual machine monitor, written for cloud-hypervisor,
// QEMU and StratoVirt. A driver turns a machine's shape into processes that
// vmm-supervisor starts (Plan), and speaks the VMM's control protocol to a machine
// that runs (Attach), one that this daemon started or one that it found again.
// Policy (which VMM, templates, pools, restarts) belongs to the sandbox layer.
//
// Threads: a Vm lives on the executor on which Attach ran, a strand of its sandbox.
// Errors: UNIMPLEMENTED for what Capabilities denies; UNAVAILABLE when the VMM is gone.
namespace magnetar::vmm {

struct Capabilities {
  bool hybrid_vsock = false;      // listens on vm.vsock itself
  bool shared_memory_fs = false;  // can take a vhost-user-fs device
  bool hotplug_disk = false;
  bool hotplug_nic = false;
  bool resize_cpus = false;
  bool resize_memory = false;
  bool pause = false;
  bool save = false;           // Plan() accepts memory_file, and Save() writes a template
  bool clone = false;          // Plan() accepts CloneSource
  bool clone_pauses = false;   // a clone waits for Resume(); else it runs once it is loaded
  bool disks_by_path = false;  // opens DiskSpec::path itself; else it is passed DiskSpec::fd
  bool needs_kvm = false;
};

enum class Acceleration { kKvm, kTcg };

// How vm.vsock reaches the guest; kNative only with Capabilities::hybrid_vsock.
enum class TransportKind { kNative, kKernelVsock, kMux };

struct NicSpec {
  std::string id;   // stable within the VM: "nic0"
  std::string mac;  // as the pod's interface has it
  uint32_t mtu = 1500;
  int tap_fd = -1;  // borrowed; opened in the pod's netns with IFF_VNET_HDR
};

struct DiskSpec {
  std::string serial;  // how the guest finds it; at most 20 bytes
  int fd = -1;         // borrowed; the VMM's uid needs no access to the path
  bool read_only = false;
  std::string path{};  // of the same file, with Capabilities::disks_by_path: for the VMM's uid
};

// A template. A clone maps its memory file privately; Save() writes the state beside the memory
// file that the machine has had from its start.
struct CloneSource {
  std::string memory_path;
  std::string state_path;
};

struct MachineSpec {
  std::string sandbox_id;
  std::string directory;  // the sandbox's run directory
  uint32_t vcpus = 1;
  uint32_t max_vcpus = 1;
  uint64_t memory_bytes = 0;
  uint64_t max_memory_bytes = 0;
  std::string kernel_path;
  std::string initrd_path;
  std::string image_path;     // root image, attached read-only
  std::string extra_cmdline;  // appended to the driver's own
  TransportKind transport = TransportKind::kMux;
  uint32_t guest_cid = 0;        // kKernelVsock
  std::string shared_directory;  // exported by virtiofs; empty: none
  std::vector<NicSpec> nics;
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::string memory_file;  // a template's source: its memory, mapped shared; empty: anonymous
  std::optional<CloneSource> clone;
};

// Processes to start, and the descriptors that they need: the owner keeps these
// open until the supervisor has been started with them.
struct LaunchPlan {
  std::vector<supervisor::v1::Process> processes;
  supervisor::v1::Transport transport;
  std::vector<supervisor::v1::GuestStream> guest_streams;
  std::vector<UniqueFd> descriptors;
};

// What a VM has, and what it may be resized to.
struct Size {
  uint32_t vcpus = 0;
  uint32_t max_vcpus = 0;
  // What the guest has taken, and what it was asked to: a resize is on its way while they differ.
  uint64_t memory_bytes = 0;
  uint64_t requested_memory_bytes = 0;
  uint64_t boot_memory_bytes = 0;  // never less than this
  uint64_t max_memory_bytes = 0;
};

// Memory that is added comes in pieces of this: Linux' virtio_mem takes no smaller ones.
inline constexpr uint64_t kMemoryStep = 4 << 20;

// kMemoryChanged: the guest has taken memory, or given some back. kGuestPanic comes from guests
// that have a panic device and a driver for it. kClosed, the last: the control connection is gone,
// with the VM or without it, which the supervisor knows. Every call now fails with UNAVAILABLE; to
// a VM that lives the driver can attach again.
struct Event {
  enum class Kind { kShutdown, kReset, kGuestPanic, kDeviceDeleted, kMemoryChanged, kClosed } kind;
  std::string detail;
};

class Vm {
 public:
  virtual ~Vm() = default;

  virtual Co<absl::Status> AddDisk(DiskSpec disk) = 0;
  // Completes when the guest has let go of it.
  virtual Co<absl::Status> RemoveDisk(std::string serial) = 0;
  virtual Co<absl::Status> AddNic(NicSpec nic) = 0;
  virtual Co<absl::Status> RemoveNic(std::string id) = 0;
  virtual Co<absl::StatusOr<Size>> GetSize() = 0;
  // Adds processors, never takes any away, and asks the guest to take memory or to give it back:
  // kMemoryChanged tells that it did, by and by. What is added is rounded up to kMemoryStep.
  // OUT_OF_RANGE: more than the VM can have.
  virtual Co<absl::Status> Resize(uint32_t vcpus, uint64_t memory_bytes) = 0;
  virtual Co<absl::Status> Pause() = 0;
  virtual Co<absl::Status> Resume() = 0;
  // Writes memory and state; the VM must be paused and is of no use afterwards.
  virtual Co<absl::Status> Save(CloneSource where) = 0;
  // Asks the VMM to end now, without asking the guest.
  virtual Co<absl::Status> Quit() = 0;

  // Called on the VM's executor, one event at a time; set before anything else. What came before
  // is told at once. A handler may destroy the Vm.
  virtual void OnEvent(std::function<void(const Event&)> handler) = 0;
};

class Driver {
 public:
  virtual ~Driver() = default;
  virtual std::string_view name() const = 0;
  virtual const Capabilities& capabilities() const = 0;
  // Blocks on small file accesses only. INVALID_ARGUMENT, FAILED_PRECONDITION (a
  // missing program, kernel or image, by path) or UNIMPLEMENTED.
  virtual absl::StatusOr<LaunchPlan> Plan(const MachineSpec& spec) const = 0;
  // Connects to the control socket of the VM in `directory`.
  virtual Co<absl::StatusOr<std::unique_ptr<Vm>>> Attach(std::string directory) const = 0;
};

}  // namespace magnetar::vmm
