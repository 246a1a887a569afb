#include "src/ninep/credentials.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "magnetar/status.h"

namespace magnetar::ninep {
namespace {

constexpr uint64_t Bit(int capability) { return uint64_t{1} << capability; }

// Files of any owner and kind.
constexpr uint64_t kServing = Bit(CAP_CHOWN) | Bit(CAP_DAC_OVERRIDE) | Bit(CAP_DAC_READ_SEARCH) |
                              Bit(CAP_FOWNER) | Bit(CAP_FSETID) | Bit(CAP_SETGID) |
                              Bit(CAP_SETUID) | Bit(CAP_MKNOD) | Bit(CAP_SETFCAP);

bool IsRoot() { return ::geteuid() == 0; }

__user_cap_header_struct Header() { return {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0}; }

// Of this thread.
bool SetEffective(bool fsetid) {
  __user_cap_header_struct header = Header();
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  const auto bit = static_cast<uint32_t>(Bit(CAP_FSETID));
  const uint32_t before = data[0].effective;
  data[0].effective = fsetid ? before | (bit & data[0].permitted) : before & ~bit;
  return before == data[0].effective || ::syscall(SYS_capset, &header, data) == 0;
}

}  // namespace

absl::Status PrepareCredentials() {
  if (!IsRoot()) return absl::OkStatus();
  if (::prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "keep capabilities over changes of the user");
  }
  if (!SetEffective(false)) return ErrnoStatus(errno, "lower CAP_FSETID");
  return absl::OkStatus();
}

absl::Status DropToServing() {
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "clear the ambient capabilities");
  }
  for (int cap = 0; cap < 64; ++cap) {
    if ((kServing >> cap & 1) != 0 || ::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0) continue;
    if (errno == EINVAL) break;  // past the last one that this kernel knows
    return ErrnoStatus(errno, "bound the capabilities");
  }
  __user_cap_header_struct header = Header();
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return ErrnoStatus(errno, "capget");
  for (int half = 0; half < 2; ++half) {
    const auto kept = static_cast<uint32_t>(kServing >> (32 * half));
    data[half].permitted &= kept;
    data[half].effective &= kept;
    data[half].inheritable = 0;
  }
  if (::syscall(SYS_capset, &header, data) != 0) return ErrnoStatus(errno, "drop capabilities");
  return absl::OkStatus();
}

MakingFor::MakingFor(uid_t uid, gid_t gid) {
  if (!IsRoot()) return;
  ::setfsgid(gid);
  ::setfsuid(uid);
  // They tell no error; -1 changes nothing, and they return what was before.
  constexpr auto kAsk = static_cast<uid_t>(-1);
  ok_ = static_cast<gid_t>(::setfsgid(kAsk)) == gid && static_cast<uid_t>(::setfsuid(kAsk)) == uid;
}

MakingFor::~MakingFor() {
  if (!IsRoot()) return;
  ::setfsuid(0);
  ::setfsgid(0);
}

SettingBits::SettingBits() {
  // Without it the kernel leaves bits out, which the guest reads back.
  if (IsRoot()) SetEffective(true);
}

SettingBits::~SettingBits() {
  if (IsRoot()) SetEffective(false);
}

}  // namespace magnetar::ninep
