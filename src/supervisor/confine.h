#pragma once

#include <sys/types.h>

#include "absl/status/status.h"

namespace magnetar::supervisor {

struct Confinement {
  uid_t uid = 0;
  gid_t gid = 0;
  // May make AF_VSOCK sockets, which reach every guest of the host.
  bool vsock = false;
};

// What a supervisor needs once its VM runs is little: the descriptors that it has, and to end
// its processes. It parses what a guest writes, so it gives up all else: root's uid, every
// capability but CAP_KILL (for children of another uid; the kernel also asks for it when it sends
// them their PDEATHSIG), and every system call but those of a table, which opens no file, starts no
// program and connects to nobody. Of signals to others it may send SIGKILL, to one process or its
// own group; the kernel cannot be told to which processes. Only with one thread. For good.
absl::Status Confine(const Confinement& confinement);

}  // namespace magnetar::supervisor
