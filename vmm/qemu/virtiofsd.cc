#include "vmm/qemu/virtiofsd.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace magnetar::vmm::qemu {
namespace {

constexpr int kListenerTarget = 10;
constexpr uint64_t kOpenFiles = 1 << 20;

// Files of any owner and kind; and SYS_ADMIN, SETPCAP for its sandbox, which it gives up.
constexpr const char* kVirtiofsdCapabilities[] = {
    "CAP_CHOWN",   "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
    "CAP_FSETID",  "CAP_SETGID",       "CAP_SETUID",          "CAP_MKNOD",
    "CAP_SETFCAP", "CAP_SYS_ADMIN",    "CAP_SETPCAP"};

// QEMU's own, in C, takes FUSE options; its successor in Rust takes long ones.
bool IsLegacy(const std::string& program) { return absl::EndsWith(program, "/qemu/virtiofsd"); }

}  // namespace

supervisor::v1::Process VirtiofsdProcess(const std::string& program, const std::string& directory,
                                         int listener) {
  supervisor::v1::Process process;
  process.set_name("virtiofsd");
  process.add_argv(program);
  process.add_argv(absl::StrCat("--fd=", kListenerTarget));
  if (IsLegacy(program)) {
    process.add_argv("--rlimit-nofile=0");
    process.add_argv("-o");
    // With `auto` every open, so every start of a program, reads the file anew. With this the guest
    // asks for attributes once a second, and drops what it has of a file whose time or size
    // changed.
    process.add_argv(absl::StrCat("source=", directory,
                                  ",cache=always,timeout=1,xattr,announce_submounts,"
                                  "sandbox=namespace,log_level=warn"));
  } else {
    process.add_argv("--rlimit-nofile=0");
    process.add_argv(absl::StrCat("--shared-dir=", directory));
    process.add_argv("--cache=auto");
    process.add_argv("--xattr");
    process.add_argv("--announce-submounts");
    process.add_argv("--sandbox=namespace");
    process.add_argv("--log-level=warn");
  }
  process.set_nofile(kOpenFiles);
  for (const char* name : kVirtiofsdCapabilities) process.add_capabilities(name);
  // It makes files under the user's id and main group, of whose other groups it does not hear. The
  // guest's kernel has checked the permissions with all of them: the host's must not again.
  process.set_capabilities_outlast_uid(true);
  supervisor::v1::Descriptor& descriptor = *process.add_descriptors();
  descriptor.set_source(listener);
  descriptor.set_target(kListenerTarget);
  return process;
}

}  // namespace magnetar::vmm::qemu
