#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// What this machine can run VMs with. All calls block, some for half a second: at
// start, not per sandbox.
namespace magnetar::vmm {

struct ProbeOptions {
  // Candidates in order of preference; the first that works is taken.
  std::vector<std::string> qemu = {"/usr/bin/qemu-system-x86_64",
                                   "/usr/local/bin/qemu-system-x86_64"};
  std::vector<std::string> virtiofsd = {"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd",
                                        "/usr/lib/virtiofsd"};
  std::string kvm = "/dev/kvm";
  std::string vhost_vsock = "/dev/vhost-vsock";
  std::string vhost_net = "/dev/vhost-net";
};

struct Host {
  // OK, or why not: guests really run under KVM.
  absl::Status kvm;
  // Of the time stamp counter, which guests under TCG read; 0: none.
  uint32_t tsc_khz = 0;
  bool vhost_vsock = false;
  bool vhost_net = false;
  absl::Status qemu;  // NOT_FOUND, or what running it said
  std::string qemu_path;
  std::string qemu_version;    // "7.2.22"
  std::string virtiofsd_path;  // empty: none
};

Host ProbeHost(const ProbeOptions& options = {});

// "7.2.22" from the first line of `qemu-system-x86_64 --version`. INVALID_ARGUMENT: some other
// program.
absl::StatusOr<std::string> ParseQemuVersion(const std::string& output);

}  // namespace magnetar::vmm
