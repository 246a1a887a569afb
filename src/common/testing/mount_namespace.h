#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar {

// For tests of real mounts: gives the process a mount namespace of its own, in which nothing
// reaches the host's; without root in a user namespace where it is root. To be called before the
// process has threads. The error says why a machine cannot.
inline absl::Status EnterMountNamespace() {
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  if (::unshare(CLONE_NEWNS | (uid == 0 ? 0 : CLONE_NEWUSER)) != 0) {
    return ErrnoStatus(errno, uid == 0 ? "unshare" : "unshare, as no root");
  }
  if (uid != 0) {
    MAGNETAR_RETURN_IF_ERROR(WriteExisting("/proc/self/setgroups", "deny"));
    MAGNETAR_RETURN_IF_ERROR(WriteExisting("/proc/self/uid_map", absl::StrCat("0 ", uid, " 1")));
    MAGNETAR_RETURN_IF_ERROR(WriteExisting("/proc/self/gid_map", absl::StrCat("0 ", gid, " 1")));
  }
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return ErrnoStatus(errno, "make mounts private");
  }
  return absl::OkStatus();
}

}  // namespace magnetar
