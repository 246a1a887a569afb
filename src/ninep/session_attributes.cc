#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <iterator>
#include <utility>

#include "src/ninep/credentials.h"
#include "src/ninep/session.h"

namespace magnetar::ninep {
namespace {

constexpr uint64_t kBasicAttributes = 0x7ff;
constexpr uint32_t k9pMagic = 0x01021997;  // linux/magic.h's V9FS_MAGIC

enum SetBits : uint32_t {
  kMode = 0x1,
  kUid = 0x2,
  kGid = 0x4,
  kSize = 0x8,
  kAccessed = 0x10,
  kModified = 0x20,
  kAccessedTo = 0x80,
  kModifiedTo = 0x100,
};

constexpr uint8_t kLockGranted = 0;
constexpr uint8_t kUnlocked = 2;
// include/uapi/linux/limits.h
constexpr size_t kMaxXattrName = XATTR_NAME_MAX;
constexpr size_t kMaxXattrBytes = XATTR_SIZE_MAX;
// Access control lists: the guest's kernel would not go by them, so they are neither shown nor set,
// as with virtiofs.
constexpr std::string_view kAcls[] = {"system.posix_acl_access", "system.posix_acl_default"};

bool IsAcl(std::string_view name) {
  return std::find(std::begin(kAcls), std::end(kAcls), name) != std::end(kAcls);
}

// Of a list of names that each end with a 0.
void RemoveAcls(std::string& names) {
  size_t kept = 0;
  for (size_t at = 0; at < names.size();) {
    const size_t size = std::min(names.find('\0', at), names.size() - 1) + 1 - at;
    if (!IsAcl(std::string_view(names).substr(at, size - 1))) {
      std::copy_n(names.begin() + static_cast<ptrdiff_t>(at), size,
                  names.begin() + static_cast<ptrdiff_t>(kept));
      kept += size;
    }
    at += size;
  }
  names.resize(kept);
}

void PutTime(const timespec& time, Writer& out) {
  out.U64(static_cast<uint64_t>(time.tv_sec));
  out.U64(static_cast<uint64_t>(time.tv_nsec));
}

timespec TimeOf(bool change, bool given, uint64_t seconds, uint64_t nanoseconds) {
  if (!change) return {.tv_sec = 0, .tv_nsec = UTIME_OMIT};
  if (!given) return {.tv_sec = 0, .tv_nsec = UTIME_NOW};
  return {.tv_sec = static_cast<time_t>(seconds), .tv_nsec = static_cast<long>(nanoseconds)};
}

}  // namespace

int Session::Readlink(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  if (fid == nullptr) return EBADF;
  char target[PATH_MAX];
  const ssize_t n = ::readlinkat(fid->node()->get(), "", target, sizeof(target));
  // ENOENT: it is something else.
  if (n < 0) return errno == ENOENT ? EINVAL : errno;
  out.String({target, static_cast<size_t>(n)});
  return 0;
}

int Session::GetAttributes(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  if (fid == nullptr) return EBADF;
  struct stat st = {};
  if (::fstat(fid->node()->get(), &st) != 0) return errno;
  out.U64(kBasicAttributes);
  out.Put(QidOf(st));
  out.U32(st.st_mode);
  out.U32(st.st_uid);
  out.U32(st.st_gid);
  out.U64(st.st_nlink);
  out.U64(st.st_rdev);
  out.U64(static_cast<uint64_t>(st.st_size));
  out.U64(static_cast<uint64_t>(st.st_blksize));
  out.U64(static_cast<uint64_t>(st.st_blocks));
  PutTime(st.st_atim, out);
  PutTime(st.st_mtim, out);
  PutTime(st.st_ctim, out);
  for (int i = 0; i < 4; ++i) out.U64(0);  // time of birth, generation, version: not known
  return 0;
}

int Session::TruncateTo(const Fid& fid, uint64_t size) {
  const auto to = static_cast<off_t>(size);
  const std::shared_ptr<OpenFile> file = fid.file();
  if (file != nullptr && ::ftruncate(file->fd.get(), to) == 0) return 0;
  // Not open, or not for writing.
  const UniqueFd fd = descriptors_.Open(fid.node()->get(), O_WRONLY);
  return fd.ok() && ::ftruncate(fd.get(), to) == 0 ? 0 : errno;
}

int Session::SetAttributes(Reader& in, Writer&) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint32_t valid = in.U32();
  const uint32_t mode = in.U32();
  const uint32_t uid = in.U32();
  const uint32_t gid = in.U32();
  const uint64_t size = in.U64();
  const uint64_t accessed = in.U64(), accessed_ns = in.U64();
  const uint64_t modified = in.U64(), modified_ns = in.U64();
  if (!in.ok()) return EINVAL;
  if (fid == nullptr) return EBADF;
  const Fid::Node node = fid->node();
  if ((valid & kSize) != 0) {
    if (const int error = TruncateTo(*fid, size); error != 0) return error;
  }
  // Before the mode, of which a change of the owner takes bits.
  if ((valid & (kUid | kGid)) != 0 &&
      ::fchownat(node->get(), "", (valid & kUid) != 0 ? uid : static_cast<uid_t>(-1),
                 (valid & kGid) != 0 ? gid : static_cast<gid_t>(-1), AT_EMPTY_PATH) != 0) {
    return errno;
  }
  if ((valid & kMode) != 0) {
    const SettingBits bits;
    if (::chmod(descriptors_.PathOf(node->get()).c_str(), mode & 07777) != 0) return errno;
  }
  if ((valid & (kAccessed | kModified)) != 0) {
    const timespec times[2] = {
        TimeOf((valid & kAccessed) != 0, (valid & kAccessedTo) != 0, accessed, accessed_ns),
        TimeOf((valid & kModified) != 0, (valid & kModifiedTo) != 0, modified, modified_ns)};
    const std::string path = descriptors_.PathOf(node->get());
    if (::utimensat(AT_FDCWD, path.c_str(), times, 0) != 0) return errno;
  }
  return 0;
}

int Session::Statfs(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  if (fid == nullptr) return EBADF;
  struct statfs fs = {};
  if (::fstatfs(fid->node()->get(), &fs) != 0) return errno;
  out.U32(k9pMagic);
  out.U32(static_cast<uint32_t>(fs.f_bsize));
  out.U64(fs.f_blocks);
  out.U64(fs.f_bfree);
  out.U64(fs.f_bavail);
  out.U64(fs.f_files);
  out.U64(fs.f_ffree);
  out.U64(static_cast<uint32_t>(fs.f_fsid.__val[0]) |
          uint64_t{static_cast<uint32_t>(fs.f_fsid.__val[1])} << 32);
  out.U32(static_cast<uint32_t>(fs.f_namelen));
  return 0;
}

int Session::Lock(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  if (fid == nullptr || fid->file() == nullptr) return EBADF;
  out.U8(kLockGranted);
  return 0;
}

int Session::GetLock(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  in.U8();
  const uint64_t start = in.U64();
  const uint64_t length = in.U64();
  const uint32_t process = in.U32();
  const std::string_view client = in.String();
  if (!in.ok()) return EINVAL;
  if (fid == nullptr) return EBADF;
  out.U8(kUnlocked);
  out.U64(start);
  out.U64(length);
  out.U32(process);
  out.String(client);
  return 0;
}

int Session::XattrWalk(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint32_t number = in.U32();
  const std::string name(in.String());
  if (!in.ok()) return EINVAL;
  if (fid == nullptr) return EBADF;
  if (IsAcl(name)) return EOPNOTSUPP;
  const Fid::Node node = fid->node();
  const std::string path = descriptors_.PathOf(node->get());
  Xattr xattr;
  xattr.name = name;
  char value[kMaxXattrBytes];
  const ssize_t n = name.empty() ? ::listxattr(path.c_str(), value, sizeof(value))
                                 : ::getxattr(path.c_str(), name.c_str(), value, sizeof(value));
  if (n < 0) return errno;
  xattr.value.assign(value, static_cast<size_t>(n));
  if (name.empty()) RemoveAcls(xattr.value);
  const size_t size = xattr.value.size();
  if (!xattr_budget_.Take(name.size() + size, xattr.share)) return ENOMEM;
  auto made = std::make_shared<Fid>(fid->uid(), node);
  made->SetXattr(std::move(xattr));
  if (const int error = fids_.Add(number, std::move(made)); error != 0) return error;
  out.U64(size);
  return 0;
}

int Session::XattrCreate(Reader& in, Writer&) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  Xattr xattr;
  xattr.name = std::string(in.String());
  const uint64_t size = in.U64();
  xattr.flags = static_cast<int>(in.U32());
  if (!in.ok() || xattr.name.empty()) return EINVAL;
  if (fid == nullptr) return EBADF;
  if (xattr.name.size() > kMaxXattrName) return ERANGE;
  if (size > kMaxXattrBytes) return E2BIG;
  if (IsAcl(xattr.name)) return EOPNOTSUPP;
  if (!xattr_budget_.Take(xattr.name.size() + size, xattr.share)) return ENOMEM;
  xattr.size = size;
  xattr.value.reserve(size);
  xattr.writing = true;
  return fid->SetXattr(std::move(xattr)) ? 0 : EBADF;
}

int Session::SetXattr(const Fid& fid, const Xattr& xattr) {
  const Fid::Node node = fid.node();
  const std::string path = descriptors_.PathOf(node->get());
  if (xattr.value.size() != xattr.size) return EINVAL;
  // Linux has no other way to say it.
  const bool removal = xattr.size == 0 && xattr.flags == XATTR_REPLACE;
  const int result = removal ? ::removexattr(path.c_str(), xattr.name.c_str())
                             : ::setxattr(path.c_str(), xattr.name.c_str(), xattr.value.data(),
                                          xattr.value.size(), xattr.flags);
  return result == 0 ? 0 : errno;
}

}  // namespace magnetar::ninep
