#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "src/ninep/credentials.h"
#include "src/ninep/session.h"

namespace magnetar::ninep {

Fid::Node Session::Parent(const std::shared_ptr<Fid>& fid, const std::string& name) const {
  return fid == nullptr || !IsName(name) ? nullptr : fid->node();
}

int Session::AnswerEntry(int directory, const std::string& name, Writer& out) {
  struct stat st = {};
  if (::fstatat(directory, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) return errno;
  out.Put(QidOf(st));
  return 0;
}

template <typename F>
int Session::Make(const std::shared_ptr<Fid>& fid, const std::string& name, uint32_t gid,
                  Writer& out, F make) {
  const Fid::Node parent = Parent(fid, name);
  if (parent == nullptr) return EBADF;
  {
    const MakingFor owner(fid->uid(), gid);
    if (!owner.ok()) return EINVAL;
    if (make(parent->get()) != 0) return errno;
  }
  return AnswerEntry(parent->get(), name, out);
}

int Session::MakeSymlink(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const std::string name(in.String());
  const std::string target(in.String());
  const uint32_t gid = in.U32();
  if (!in.ok()) return EINVAL;
  return Make(fid, name, gid, out,
              [&](int directory) { return ::symlinkat(target.c_str(), directory, name.c_str()); });
}

int Session::MakeNode(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const std::string name(in.String());
  const uint32_t mode = in.U32();
  const uint32_t major = in.U32();
  const uint32_t minor = in.U32();
  const uint32_t gid = in.U32();
  if (!in.ok()) return EINVAL;
  return Make(fid, name, gid, out, [&](int directory) {
    const SettingBits bits;
    return ::mknodat(directory, name.c_str(), mode, makedev(major, minor));
  });
}

int Session::MakeDirectory(Reader& in, Writer& out) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const std::string name(in.String());
  const uint32_t mode = in.U32();
  const uint32_t gid = in.U32();
  if (!in.ok()) return EINVAL;
  return Make(fid, name, gid, out,
              [&](int directory) { return ::mkdirat(directory, name.c_str(), mode & 07777); });
}

int Session::Link(Reader& in, Writer&) {
  const std::shared_ptr<Fid> directory = fids_.Find(in.U32());
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const std::string name(in.String());
  if (!in.ok()) return EINVAL;
  const Fid::Node parent = Parent(directory, name);
  if (parent == nullptr || fid == nullptr) return EBADF;
  const Fid::Node node = fid->node();
  // By the way through /proc and not with AT_EMPTY_PATH, which not every user may.
  const std::string path = descriptors_.PathOf(node->get());
  const int result =
      ::linkat(AT_FDCWD, path.c_str(), parent->get(), name.c_str(), AT_SYMLINK_FOLLOW);
  return result == 0 ? 0 : errno;
}

int Session::Rename(Reader& in, Writer&) {
  const std::shared_ptr<Fid> from = fids_.Find(in.U32());
  const std::string name(in.String());
  const std::shared_ptr<Fid> to = fids_.Find(in.U32());
  const std::string new_name(in.String());
  if (!in.ok()) return EINVAL;
  const Fid::Node parent = Parent(from, name);
  const Fid::Node new_parent = Parent(to, new_name);
  if (parent == nullptr || new_parent == nullptr) return EBADF;
  const int result = ::renameat(parent->get(), name.c_str(), new_parent->get(), new_name.c_str());
  return result == 0 ? 0 : errno;
}

int Session::Unlink(Reader& in, Writer&) {
  const std::shared_ptr<Fid> fid = fids_.Find(in.U32());
  const std::string name(in.String());
  const uint32_t flags = in.U32();
  if (!in.ok() || (flags & ~static_cast<uint32_t>(AT_REMOVEDIR)) != 0) return EINVAL;
  const Fid::Node parent = Parent(fid, name);
  if (parent == nullptr) return EBADF;
  return ::unlinkat(parent->get(), name.c_str(), static_cast<int>(flags)) == 0 ? 0 : errno;
}

}  // namespace magnetar::ninep
