#include "guest-agent/storage/volume_part.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

using Part = agent::v1::Storage::Part;

UniqueFd OpenWithin(int parent, const std::string& name) {
  struct open_how how = {};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  return UniqueFd(
      static_cast<int>(::syscall(SYS_openat2, parent, name.c_str(), &how, sizeof(how))));
}

// Its owner before its mode: chown(2) takes bits away.
absl::Status Make(int parent, const std::string& name, const Part& part) {
  UniqueFd made;
  if (S_ISDIR(part.mode())) {
    if (::mkdirat(parent, name.c_str(), 0700) != 0) return ErrnoStatus(errno, "make directory");
    made.reset(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  } else {
    made.reset(::openat(parent, name.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  }
  if (!made.ok() || ::fchown(made.get(), part.uid(), part.gid()) != 0 ||
      ::fchmod(made.get(), part.mode() & 07777U) != 0) {
    return ErrnoStatus(errno, "make");
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenOrMake(int parent, const Part& part) {
  const std::string& name = part.name();
  const bool nonsense = name.empty() || name == "." || name == ".." ||
                        name.find('/') != std::string::npos || name.find('\0') != std::string::npos;
  if (nonsense || (!S_ISDIR(part.mode()) && !S_ISREG(part.mode()))) {
    return absl::InvalidArgumentError("no part of a path");
  }
  UniqueFd there = OpenWithin(parent, name);
  if (there.ok()) return there;
  if (errno != ENOENT) return absl::FailedPreconditionError(ErrnoStatus(errno, "open").message());
  MAGNETAR_RETURN_IF_ERROR(Make(parent, name, part));
  there = OpenWithin(parent, name);
  if (!there.ok()) return ErrnoStatus(errno, "open");
  return there;
}

}  // namespace

absl::StatusOr<UniqueFd> OpenVolumePart(const agent::v1::Storage& storage) {
  UniqueFd here(::open(storage.volume().c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!here.ok()) return ErrnoStatus(errno, storage.volume());
  std::string path;
  for (const Part& part : storage.parts()) {
    absl::StrAppend(&path, path.empty() ? "" : "/", absl::CHexEscape(part.name()));
    absl::StatusOr<UniqueFd> next = OpenOrMake(here.get(), part);
    if (!next.ok()) return Annotate(next.status(), absl::StrCat("part \"", path, "\""));
    here = *std::move(next);
  }
  return here;
}

absl::Status BindVolumePart(int part, const std::string& target) {
  struct stat st = {};
  if (::fstat(part, &st) != 0) return ErrnoStatus(errno, "stat");
  if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)) {
    return absl::FailedPreconditionError("neither a directory nor a file");
  }
  if (S_ISDIR(st.st_mode)) {
    MAGNETAR_RETURN_IF_ERROR(MakeDirectories(target, 0755));
  } else {
    MAGNETAR_RETURN_IF_ERROR(WriteFileAtomically(target, ""));
  }
  const std::string source = absl::StrCat("/proc/self/fd/", part);
  if (::mount(source.c_str(), target.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind to ", target));
  }
  return absl::OkStatus();
}

}  // namespace magnetar::guest
