#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "src/ninep/credentials.h"
#include "src/ninep/session.h"

namespace magnetar::ninep {
namespace {

// The protocol's numbers for open(2)'s flags are Linux' on most machines. Those that are passed on;
// the rest means something to the client alone, or nothing (O_DIRECT: of its cache).
constexpr struct {
  uint32_t theirs;
  int ours;
} kFlags[] = {
    {00000001, O_WRONLY}, {00000002, O_RDWR},  {00000200, O_EXCL},      {00001000, O_TRUNC},
    {00002000, O_APPEND}, {00010000, O_DSYNC}, {00200000, O_DIRECTORY}, {04000000, O_SYNC},
};

int FlagsOf(uint32_t theirs) {
  int flags = 0;
  for (const auto& flag : kFlags) {
    if ((theirs & flag.theirs) != 0) flags |= flag.ours;
  }
  return flags;
}

struct DirectoryEntry {
  uint64_t ino;
  int64_t next;
  uint16_t size;
  uint8_t type;
  char name[];
};

// The owner of a new file, and its mode.
struct Making {
  uid_t uid;
  gid_t gid;
  mode_t mode;
};

UniqueFd MakeFile(int directory, const std::string& name, int flags, const Making& making) {
  const MakingFor owner(making.uid, making.gid);
  const SettingBits bits;
  if (!owner.ok()) {
    errno = EINVAL;
    return UniqueFd();
  }
  return UniqueFd(::openat(directory, name.c_str(),
                           flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, making.mode));
}

// One that is there already is opened like any other, after a look at what it is.
UniqueFd MakeOrOpenFile(const Descriptors& descriptors, int directory, const std::string& name,
                        int flags, const Making& making) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    UniqueFd made = MakeFile(directory, name, flags, making);
    if (made.ok() || errno != EEXIST || (flags & O_EXCL) != 0) return made;
    const UniqueFd node = OpenEntry(directory, name);
    if (node.ok()) return descriptors.Open(node.get(), flags);
    if (errno != ENOENT) break;
  }
  return UniqueFd();
}

}  // namespace

int Session::Open(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint32_t flags = in.U32();
  if (!in.ok()) return EINVAL;
  if (fid == nullptr) return EBADF;
  UniqueFd fd = descriptors_.Open(fid->node()->get(), FlagsOf(flags) & ~O_EXCL);
  struct stat st = {};
  if (!fd.ok() || ::fstat(fd.get(), &st) != 0) return errno;
  if (!fid->Open(std::make_shared<OpenFile>(std::move(fd)))) return EBADF;
  out.Put(QidOf(st));
  out.U32(0);  // any number of bytes at a time
  return 0;
}

int Session::Create(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const std::string name(in.String());
  const int flags = FlagsOf(in.U32());
  const uint32_t mode = in.U32();
  const uint32_t gid = in.U32();
  if (!in.ok()) return EINVAL;
  const Fid::Node parent = Parent(fid, name);
  if (parent == nullptr) return EBADF;
  UniqueFd fd = MakeOrOpenFile(descriptors_, parent->get(), name, flags & ~O_DIRECTORY,
                               {.uid = fid->uid(), .gid = gid, .mode = mode & 07777});
  if (!fd.ok()) return errno;
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) return errno;
  UniqueFd node(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!node.ok()) return errno;
  if (!fid->Become(std::make_shared<const UniqueFd>(std::move(node)),
                   std::make_shared<OpenFile>(std::move(fd)))) {
    return EBADF;
  }
  out.Put(QidOf(st));
  out.U32(0);
  return 0;
}

int Session::Read(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint64_t offset = in.U64();
  const uint32_t count = Fitting(in.U32());
  if (!in.ok()) return EINVAL;
  if (fid == nullptr) return EBADF;
  out.U32(0);
  bool taken = false;
  const bool attribute = fid->WithXattr([&](Xattr& xattr) {
    if (xattr.writing || offset > xattr.value.size()) return;
    const std::string_view part = std::string_view(xattr.value).substr(offset, count);
    std::copy(part.begin(), part.end(), out.Reserve(part.size()));
    out.SetU32(kHeaderBytes, static_cast<uint32_t>(part.size()));
    taken = true;
  });
  if (attribute) return taken ? 0 : EBADF;
  const std::shared_ptr<OpenFile> file = fid->file();
  if (file == nullptr) return EBADF;
  char* data = out.Reserve(count);
  const ssize_t n = ::pread(file->fd.get(), data, count, static_cast<off_t>(offset));
  if (n < 0) return errno;
  out.Shrink(count - static_cast<size_t>(n));
  out.SetU32(kHeaderBytes, static_cast<uint32_t>(n));
  return 0;
}

int Session::Write(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint64_t offset = in.U64();
  const std::string_view data = in.Bytes(in.U32());
  if (!in.ok()) return EINVAL;
  if (fid == nullptr) return EBADF;
  int error = 0;
  const bool attribute = fid->WithXattr([&](Xattr& xattr) {
    if (!xattr.writing || offset != xattr.value.size() ||
        data.size() > xattr.size - xattr.value.size()) {
      error = EINVAL;
      return;
    }
    xattr.value += data;
  });
  if (attribute) {
    out.U32(static_cast<uint32_t>(data.size()));
    return error;
  }
  const std::shared_ptr<OpenFile> file = fid->file();
  if (file == nullptr) return EBADF;
  const ssize_t n = ::pwrite(file->fd.get(), data.data(), data.size(), static_cast<off_t>(offset));
  if (n < 0) return errno;
  out.U32(static_cast<uint32_t>(n));
  return 0;
}

int Session::ReadDirectory(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint64_t offset = in.U64();
  const uint32_t count = Fitting(in.U32());
  if (!in.ok()) return EINVAL;
  const std::shared_ptr<OpenFile> file = fid == nullptr ? nullptr : fid->file();
  if (file == nullptr) return EBADF;
  out.U32(0);
  struct stat st = {};
  if (::fstat(file->fd.get(), &st) != 0) return errno;

  // An entry takes as much in the answer as from the kernel, give or take a few bytes.
  std::vector<char> buffer(std::max<size_t>(count, sizeof(DirectoryEntry) + NAME_MAX + 8));
  const std::lock_guard lock(file->reading);
  if (::lseek(file->fd.get(), static_cast<off_t>(offset), SEEK_SET) < 0) return errno;
  const long n = ::syscall(SYS_getdents64, file->fd.get(), buffer.data(), buffer.size());
  if (n < 0) return errno;
  for (size_t at = 0; at < static_cast<size_t>(n);) {
    const auto* entry = reinterpret_cast<const DirectoryEntry*>(buffer.data() + at);
    const std::string_view name = entry->name;
    constexpr size_t kEntryBytes = 13 + 8 + 1 + 2;
    // What does not fit comes again.
    if (out.size() - kReadHeaderBytes + kEntryBytes + name.size() > count) break;
    struct stat of = {};
    of.st_dev = st.st_dev;
    of.st_ino = entry->ino;
    of.st_mode = static_cast<mode_t>(DTTOIF(entry->type));
    out.Put(QidOf(of));
    out.U64(static_cast<uint64_t>(entry->next));
    out.U8(entry->type);
    out.String(name);
    at += entry->size;
  }
  out.SetU32(kHeaderBytes, static_cast<uint32_t>(out.size() - kReadHeaderBytes));
  return 0;
}

int Session::Sync(Reader& in, Writer&) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const uint32_t only_data = in.U32();
  const std::shared_ptr<OpenFile> file = fid == nullptr ? nullptr : fid->file();
  if (file == nullptr) return EBADF;
  const int fd = file->fd.get();
  return (only_data != 0 ? ::fdatasync(fd) : ::fsync(fd)) == 0 ? 0 : errno;
}

}  // namespace magnetar::ninep
