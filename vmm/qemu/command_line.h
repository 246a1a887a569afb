#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vmm/vmm.h"

namespace magnetar::vmm::qemu {

// A machine in QEMU's terms. Descriptors are numbers inside the QEMU process.
struct Machine {
  struct Nic {
    std::string id;
    std::string mac;
    uint32_t mtu = 1500;
    int tap_fd = -1;
    int vhost_fd = -1;  // /dev/vhost-net; -1: QEMU copies the packets
  };
  struct Vsock {
    uint32_t cid = 0;
    int vhost_fd = -1;
    uint32_t ready_port = 0;
  };

  std::string program;
  std::string sandbox_id;
  Acceleration acceleration = Acceleration::kTcg;
  uint32_t tsc_khz = 0;
  uint32_t vcpus = 1;
  uint32_t max_vcpus = 0;  // if more than vcpus: as many can be added
  uint64_t memory_mib = 256;
  uint64_t max_memory_mib = 0;  // likewise
  std::string kernel;           // paths that the process can open
  std::string initrd;
  std::string extra_cmdline;
  int image_fd = -1;
  int qmp_fd = -1;  // listening
  // One of the two.
  int mux_fd = -1;
  std::optional<Vsock> vsock;
  int virtiofs_fd = -1;  // connected to virtiofsd; -1: none
  std::vector<Nic> nics;
};

// Ports for NICs, cold or hot-plugged. The NIC "nic2" sits on the third.
inline constexpr uint32_t kNicPorts = 4;

// Where the device goes that brings memory, in a VM that can have more.
inline constexpr char kMemoryPort[] = "memport";

// The index in a NIC's id, "nic<index>". INVALID_ARGUMENT if it is none.
absl::StatusOr<uint32_t> NicIndex(const std::string& id);

std::string KernelCommandLine(const Machine& machine);

// The whole argv.
std::vector<std::string> CommandLine(const Machine& machine);

}  // namespace magnetar::vmm::qemu
