#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "src/ninep/fid.h"
#include "src/ninep/node.h"
#include "src/ninep/wire.h"

namespace magnetar::ninep {

// The longest message that is taken or sent.
inline constexpr uint32_t kMaxMessageBytes = 128 << 10;
// The shortest that a client may ask for: the longest name or link fits.
inline constexpr uint32_t kMinMessageBytes = 8192;

// One client's view of a directory by 9P2000.L: what each request asks for, and its answer.
//
// The client is a guest's kernel, which checks permissions, keeps locks among its own processes,
// and is not trusted: whatever it sends, it gets no further than `root` and what is mounted below.
// Locks are granted and not kept: the host's processes do not see them, as with virtiofs. Nothing
// but regular files and directories is ever opened.
//
// What a client makes this side remember is bounded: so many fids, and for all of them together so
// many bytes of extended attributes.
//
// Errors are errno's, sent as they are. Thread-safe; requests may run at the same time.
class Session {
 public:
  // A descriptor of the directory, O_PATH.
  Session(UniqueFd root, Descriptors descriptors);

  // Answers a whole message, of at least kHeaderBytes and not a Tflush. Blocks.
  std::string Answer(std::string_view message);

  // What the client and this side have agreed on.
  uint32_t message_bytes() const { return message_bytes_; }

 private:
  // Linux has one for a name in use, and two for an open file.
  static constexpr size_t kMaxFids = 256 << 10;
  static constexpr size_t kMaxWalk = 16;
  // Linux holds one for as long as a system call takes.
  static constexpr size_t kMaxXattrTotal = 4 << 20;

  // Each takes its request apart and adds the answer's fields. 0, or an errno.
  using Handler = int (Session::*)(Reader& in, Writer& out);
  static Handler HandlerOf(uint8_t type);

  int Version(Reader& in, Writer& out);
  int Attach(Reader& in, Writer& out);
  int Walk(Reader& in, Writer& out);
  int Clunk(Reader& in, Writer& out);
  int Remove(Reader& in, Writer& out);

  int Open(Reader& in, Writer& out);
  int Create(Reader& in, Writer& out);
  int Read(Reader& in, Writer& out);
  int Write(Reader& in, Writer& out);
  int ReadDirectory(Reader& in, Writer& out);
  int Sync(Reader& in, Writer& out);

  int MakeSymlink(Reader& in, Writer& out);
  int MakeNode(Reader& in, Writer& out);
  int MakeDirectory(Reader& in, Writer& out);
  int Link(Reader& in, Writer& out);
  int Rename(Reader& in, Writer& out);
  int Unlink(Reader& in, Writer& out);

  int Readlink(Reader& in, Writer& out);
  int GetAttributes(Reader& in, Writer& out);
  int SetAttributes(Reader& in, Writer& out);
  int Statfs(Reader& in, Writer& out);
  int Lock(Reader& in, Writer& out);
  int GetLock(Reader& in, Writer& out);

  int XattrWalk(Reader& in, Writer& out);
  int XattrCreate(Reader& in, Writer& out);
  int SetXattr(const Fid& fid, const Xattr& xattr);

  // Descriptor of what a new entry is made in; nullptr: no such fid, or its name is none.
  Fid::Node Parent(const std::shared_ptr<Fid>& fid, const std::string& name) const;
  // A new entry, by make(directory), in the name of whoever attached.
  template <typename F>
  int Make(const std::shared_ptr<Fid>& fid, const std::string& name, uint32_t gid, Writer& out,
           F make);
  int AnswerEntry(int directory, const std::string& name, Writer& out);
  int TruncateTo(const Fid& fid, uint64_t size);
  // The most data that an answer holds.
  uint32_t Fitting(uint32_t count) const;

  const Fid::Node root_;
  const Descriptors descriptors_;
  XattrBudget xattr_budget_{kMaxXattrTotal};  // outlives the fids
  FidTable fids_;
  std::atomic<uint32_t> message_bytes_ = kMinMessageBytes;
};

}  // namespace magnetar::ninep
