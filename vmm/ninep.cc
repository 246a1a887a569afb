#include "vmm/ninep.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "vmm/file_share.h"

namespace magnetar::vmm {
namespace {

constexpr int kStreamTarget = 10;
constexpr uint64_t kOpenFiles = 1 << 20;

// Files of any owner and kind; and SYS_ADMIN, SETPCAP for its jail, which it gives up.
constexpr const char* kCapabilities[] = {"CAP_CHOWN",     "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH",
                                         "CAP_FOWNER",    "CAP_FSETID",       "CAP_SETGID",
                                         "CAP_SETUID",    "CAP_MKNOD",        "CAP_SETFCAP",
                                         "CAP_SYS_ADMIN", "CAP_SETPCAP"};

}  // namespace

absl::Status PlanNinep(const std::string& program, const std::string& directory, LaunchPlan& plan) {
  if (::access(program.c_str(), X_OK) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(kNinep.server, " ", program, ": ", ::strerror(errno)));
  }
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return ErrnoStatus(errno, "socketpair for the shared directory");
  }
  UniqueFd theirs(ends[0]);
  UniqueFd relayed(ends[1]);

  supervisor::v1::Process process;
  process.set_name(kNinep.server);
  process.add_argv(program);
  process.add_argv(absl::StrCat("--fd=", kStreamTarget));
  process.add_argv(absl::StrCat("--directory=", directory));
  process.set_nofile(kOpenFiles);
  for (const char* name : kCapabilities) process.add_capabilities(name);
  supervisor::v1::Descriptor& descriptor = *process.add_descriptors();
  descriptor.set_source(theirs.get());
  descriptor.set_target(kStreamTarget);
  // Before the VMM: an end of both is told as the server's.
  plan.processes.insert(plan.processes.begin(), std::move(process));

  supervisor::v1::GuestStream& stream = plan.guest_streams.emplace_back();
  stream.set_fd(relayed.get());
  stream.set_port(kNinep.port);
  plan.descriptors.push_back(std::move(theirs));
  plan.descriptors.push_back(std::move(relayed));
  return absl::OkStatus();
}

}  // namespace magnetar::vmm
