#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace magnetar::daemon {

// Configuration of vmm-sandboxer. Every key has the default that is written here;
// config/vmm-sandboxer.toml documents each of them.
struct Config {
  std::string listen = "/run/vmm-sandboxer.sock";
  std::string run_dir = "/run/vmm-sandboxer";
  std::string log_level = "info";  // debug, info, warn, error

  struct Containerd {
    std::string address = "/run/containerd/containerd.sock";
    // How long containerd may not know a sandbox before it is an orphan; 0: for ever.
    std::chrono::seconds orphan_after{60};

    bool operator==(const Containerd&) const = default;
  } containerd;

  struct Guest {
    std::string kernel = "/usr/lib/magnetar/guest/current/vmlinux";
    std::string initrd = "/usr/lib/magnetar/guest/current/initrd.img";
    std::string image = "/usr/lib/magnetar/guest/current/root.erofs";
    std::string extra_cmdline;
    std::string log_level = "info";
    // Memory that the guest keeps for its kernel and agent.
    uint64_t memory_reserve_mib = 32;
    // How long a guest may leave heartbeats unanswered; 0: no heartbeat.
    std::chrono::seconds heartbeat{30};
    // How long a container may outlive its SIGKILL before another one ends the VM; 0: for ever.
    std::chrono::seconds unkillable_after{60};

    bool operator==(const Guest&) const = default;
  } guest;

  // How large VMs are.
  struct Sizing {
    // Of a pod without limits.
    uint32_t vcpus = 1;
    uint64_t memory_mib = 512;
    // Added to a pod's memory limit: what the guest itself needs.
    uint64_t overhead_mib = 64;
    // What a running pod may be resized to; 0 MiB: the host's memory.
    uint32_t max_vcpus = 8;
    uint64_t max_memory_mib = 0;
    // What a pod may ask for by annotations: of "vcpus" and "memory_mib".
    std::vector<std::string> annotations;

    bool operator==(const Sizing&) const = default;
  };

  struct Vm {
    std::string vmm = "auto";             // auto, qemu
    std::string accel = "auto";           // auto, kvm, tcg
    std::string transport = "auto";       // auto, vsock, mux
    std::string file_share = "virtiofs";  // virtiofs, 9p
    Sizing size;
    std::string qemu_path = "/usr/bin/qemu-system-x86_64";
    std::string virtiofsd_path = "/usr/lib/qemu/virtiofsd";
    std::string vmm_9p_path = "/usr/libexec/magnetar/vmm-9p";
    std::string supervisor_path = "/usr/libexec/magnetar/vmm-supervisor";
    std::chrono::seconds start_timeout{60};
    // What a guest may take for unmounting and syncing before its VM is ended.
    std::chrono::milliseconds stop_timeout{2000};
    // Each VM runs under a uid of its own, out of this range.
    uint32_t uid_base = 1900000000;
    uint32_t uid_count = 65536;
    uint64_t console_ring_kib = 64;

    bool operator==(const Vm&) const = default;
  } vm;

  // By the name of containerd's runtime handler; `vm.size` holds for all others.
  std::map<std::string, Sizing> handlers;

  // For the pods of a handler. Lives as long as the configuration.
  const Sizing& SizingOf(const std::string& handler) const;

  struct Metrics {
    // "host:port" or "unix:/path"; empty: none are offered.
    std::string address;

    bool operator==(const Metrics&) const = default;
  } metrics;

  struct Debug {
    std::vector<std::string> failpoints;

    bool operator==(const Debug&) const = default;
  } debug;

  bool operator==(const Config&) const = default;
};

// Parses TOML. A wrong key, type or value gives INVALID_ARGUMENT
// "<file>:<line>: <key>: <what is wrong>".
absl::StatusOr<Config> ParseConfig(std::string_view toml, const std::string& file);

// Sets a key outside all tables that holds text. INVALID_ARGUMENT says what is wrong with the
// value.
absl::Status SetConfigText(Config* config, const std::string& key, const std::string& value);

// Reads and parses `file`; NOT_FOUND if it is absent.
absl::StatusOr<Config> LoadConfig(const std::string& file);

}  // namespace magnetar::daemon
