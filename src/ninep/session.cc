#include "src/ninep/session.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace magnetar::ninep {
namespace {

constexpr char kVersion[] = "9P2000.L";
// A request without a user; the root's then.
constexpr uint32_t kNobody = ~0U;

}  // namespace

Session::Session(UniqueFd root, Descriptors descriptors)
    : root_(std::make_shared<const UniqueFd>(std::move(root))),
      descriptors_(std::move(descriptors)),
      fids_(kMaxFids) {}

Session::Handler Session::HandlerOf(uint8_t type) {
  switch (type) {
    case kTversion:
      return &Session::Version;
    case kTattach:
      return &Session::Attach;
    case kTwalk:
      return &Session::Walk;
    case kTclunk:
      return &Session::Clunk;
    case kTremove:
      return &Session::Remove;
    case kTlopen:
      return &Session::Open;
    case kTlcreate:
      return &Session::Create;
    case kTread:
      return &Session::Read;
    case kTwrite:
      return &Session::Write;
    case kTreaddir:
      return &Session::ReadDirectory;
    case kTfsync:
      return &Session::Sync;
    case kTsymlink:
      return &Session::MakeSymlink;
    case kTmknod:
      return &Session::MakeNode;
    case kTmkdir:
      return &Session::MakeDirectory;
    case kTlink:
      return &Session::Link;
    case kTrenameat:
      return &Session::Rename;
    case kTunlinkat:
      return &Session::Unlink;
    case kTreadlink:
      return &Session::Readlink;
    case kTgetattr:
      return &Session::GetAttributes;
    case kTsetattr:
      return &Session::SetAttributes;
    case kTstatfs:
      return &Session::Statfs;
    case kTlock:
      return &Session::Lock;
    case kTgetlock:
      return &Session::GetLock;
    case kTxattrwalk:
      return &Session::XattrWalk;
    case kTxattrcreate:
      return &Session::XattrCreate;
    default:
      return nullptr;
  }
}

std::string Session::Answer(std::string_view message) {
  Reader in(message);
  in.U32();
  const uint8_t type = in.U8();
  const uint16_t tag = in.U16();
  const Handler handler = HandlerOf(type);
  // What Linux takes for "try something older".
  if (handler == nullptr) return ErrorMessage(tag, EOPNOTSUPP);
  Writer out(static_cast<uint8_t>(type + 1), tag);
  int error = (this->*handler)(in, out);
  // Of those that change nothing and look at what there is of a message.
  if (error == 0 && !in.ok()) error = EINVAL;
  return error == 0 ? std::move(out).Finish() : ErrorMessage(tag, error);
}

uint32_t Session::Fitting(uint32_t count) const {
  return std::min(count, message_bytes_ - kIoHeaderBytes);
}

int Session::Version(Reader& in, Writer& out) {
  const uint32_t bytes = in.U32();
  const std::string_view version = in.String();
  if (!in.ok() || bytes < kMinMessageBytes) return EINVAL;
  fids_.Clear();
  message_bytes_ = std::min(bytes, kMaxMessageBytes);
  out.U32(message_bytes_);
  out.String(version == kVersion ? kVersion : "unknown");
  return 0;
}

int Session::Attach(Reader& in, Writer& out) {
  const uint32_t number = in.U32();
  in.U32();     // authentication: there is none
  in.String();  // the user's name: the number counts
  const std::string_view what = in.String();
  const uint32_t uid = in.U32();
  if (!in.ok()) return EINVAL;
  if (!what.empty() && what != "/") return ENOENT;
  struct stat st = {};
  if (::fstat(root_->get(), &st) != 0) return errno;
  const int error =
      fids_.Add(number, std::make_shared<Fid>(uid == kNobody ? uint32_t{0} : uid, root_));
  out.Put(QidOf(st));
  return error;
}

int Session::Walk(Reader& in, Writer& out) {
  const uint32_t from_number = in.U32();
  const uint32_t number = in.U32();
  const uint16_t count = in.U16();
  std::vector<std::string> names;
  for (uint16_t i = 0; i < count && in.ok(); ++i) names.emplace_back(in.String());
  if (!in.ok() || count > kMaxWalk) return EINVAL;
  const std::shared_ptr<Fid> from = fids_.Find(from_number);
  if (from == nullptr) return EBADF;
  Fid::Node node = from->node();
  std::vector<Qid> qids;
  int error = 0;
  for (const std::string& name : names) {
    // Linux asks for no "..".
    if (!IsName(name)) {
      error = ENOENT;
      break;
    }
    UniqueFd next = OpenEntry(node->get(), name);
    struct stat st = {};
    if (!next.ok() || ::fstat(next.get(), &st) != 0) {
      error = errno;
      break;
    }
    qids.push_back(QidOf(st));
    node = std::make_shared<const UniqueFd>(std::move(next));
  }
  if (error != 0 && qids.empty()) return error;
  if (error == 0) {
    const Fid* replaced = number == from_number ? from.get() : nullptr;
    error = fids_.Add(number, std::make_shared<Fid>(from->uid(), std::move(node)), replaced);
    if (error != 0) return error;
  }
  out.U16(static_cast<uint16_t>(qids.size()));
  for (const Qid& qid : qids) out.Put(qid);
  return 0;
}

int Session::Clunk(Reader& in, Writer&) {
  const uint32_t number = in.U32();
  if (!in.ok()) return EINVAL;
  const std::shared_ptr<Fid> fid = fids_.Remove(number);
  if (fid == nullptr) return EBADF;
  Xattr written;
  fid->WithXattr([&written](Xattr& xattr) { written = std::move(xattr); });
  return written.writing ? SetXattr(*fid, written) : 0;
}

// Of what came before unlinkat. It gives the fid up in any case.
int Session::Remove(Reader& in, Writer&) {
  const uint32_t number = in.U32();
  if (!in.ok()) return EINVAL;
  return fids_.Remove(number) == nullptr ? EBADF : EOPNOTSUPP;
}

}  // namespace magnetar::ninep
