#pragma once

#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "magnetar/unique_fd.h"
#include "src/ninep/wire.h"

namespace magnetar::ninep::testing {

inline std::pair<UniqueFd, UniqueFd> SocketPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// The client's side of a stream, one request at a time.
class Client {
 public:
  explicit Client(UniqueFd stream) : stream_(std::move(stream)) {}

  void Send(std::string_view bytes) {
    if (::send(stream_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(bytes.size())) {
      std::abort();
    }
  }

  // The next whole message; empty: the end.
  std::string Receive() {
    std::string message = Exactly(4);
    if (message.size() < 4) return "";
    return message + Exactly(Reader(message).U32() - 4);
  }

  // The errno of the answer, whose fields are in `answer` from here on.
  int Call(Writer request) {
    Send(std::move(request).Finish());
    message_ = Receive();
    if (message_.empty()) return -1;
    answer = Reader(std::string_view(message_).substr(kHeaderBytes));
    return static_cast<uint8_t>(message_[4]) == kRlerror ? static_cast<int>(answer.U32()) : 0;
  }

  int Version(uint32_t bytes = 65536) {
    Writer request(kTversion, 0xffff);
    request.U32(bytes);
    request.String("9P2000.L");
    return Call(std::move(request));
  }

  int Attach(uint32_t fid, uint32_t uid = 0) {
    Writer request(kTattach, 1);
    request.U32(fid);
    request.U32(~0U);
    request.String("nobody");
    request.String("");
    request.U32(uid);
    return Call(std::move(request));
  }

  int Walk(uint32_t fid, uint32_t newfid, const std::vector<std::string>& names) {
    Writer request(kTwalk, 1);
    request.U32(fid);
    request.U32(newfid);
    request.U16(static_cast<uint16_t>(names.size()));
    for (const std::string& name : names) request.String(name);
    return Call(std::move(request));
  }

  int Open(uint32_t fid, uint32_t flags) {
    Writer request(kTlopen, 1);
    request.U32(fid);
    request.U32(flags);
    return Call(std::move(request));
  }

  int Create(uint32_t fid, const std::string& name, uint32_t flags, uint32_t mode,
             uint32_t gid = 0) {
    Writer request(kTlcreate, 1);
    request.U32(fid);
    request.String(name);
    request.U32(flags);
    request.U32(mode);
    request.U32(gid);
    return Call(std::move(request));
  }

  int Read(uint32_t fid, uint64_t offset, uint32_t count, std::string& data,
           uint8_t type = kTread) {
    Writer request(type, 1);
    request.U32(fid);
    request.U64(offset);
    request.U32(count);
    const int error = Call(std::move(request));
    if (error == 0) data = std::string(answer.Bytes(answer.U32()));
    return error;
  }

  int Write(uint32_t fid, uint64_t offset, const std::string& data) {
    Writer request(kTwrite, 1);
    request.U32(fid);
    request.U64(offset);
    request.U32(static_cast<uint32_t>(data.size()));
    std::copy(data.begin(), data.end(), request.Reserve(data.size()));
    return Call(std::move(request));
  }

  int OfFid(uint8_t type, uint32_t fid) {
    Writer request(type, 1);
    request.U32(fid);
    return Call(std::move(request));
  }
  int Clunk(uint32_t fid) { return OfFid(kTclunk, fid); }

  int Link(uint32_t directory, uint32_t fid, const std::string& name) {
    Writer request(kTlink, 1);
    request.U32(directory);
    request.U32(fid);
    request.String(name);
    return Call(std::move(request));
  }
  int XattrWalk(uint32_t fid, uint32_t newfid, const std::string& name) {
    Writer request(kTxattrwalk, 1);
    request.U32(fid);
    request.U32(newfid);
    request.String(name);
    return Call(std::move(request));
  }
  int XattrCreate(uint32_t fid, const std::string& name, uint64_t size, uint32_t flags = 0) {
    Writer request(kTxattrcreate, 1);
    request.U32(fid);
    request.String(name);
    request.U64(size);
    request.U32(flags);
    return Call(std::move(request));
  }
  int Unlink(uint32_t directory, const std::string& name, uint32_t flags = 0) {
    Writer request(kTunlinkat, 1);
    request.U32(directory);
    request.String(name);
    request.U32(flags);
    return Call(std::move(request));
  }

  // st_mode, st_uid, st_gid and st_size of what Tgetattr answers.
  struct Attributes {
    uint64_t path = 0;
    uint32_t mode = 0, uid = 0, gid = 0;
    uint64_t links = 0, size = 0;
  };
  int GetAttributes(uint32_t fid, Attributes& attributes) {
    Writer request(kTgetattr, 1);
    request.U32(fid);
    request.U64(0x7ff);
    if (const int error = Call(std::move(request)); error != 0) return error;
    answer.U64();
    answer.U8();
    answer.U32();
    attributes.path = answer.U64();
    attributes.mode = answer.U32();
    attributes.uid = answer.U32();
    attributes.gid = answer.U32();
    attributes.links = answer.U64();
    answer.U64();
    attributes.size = answer.U64();
    return 0;
  }

  int SetAttributes(uint32_t fid, uint32_t valid, uint32_t mode, uint32_t uid, uint32_t gid,
                    uint64_t size) {
    Writer request(kTsetattr, 1);
    for (const uint32_t field : {fid, valid, mode, uid, gid}) request.U32(field);
    request.U64(size);
    for (int i = 0; i < 4; ++i) request.U64(1000);
    return Call(std::move(request));
  }

  void Close() { stream_.reset(); }

  Reader answer{std::string_view()};

 private:
  std::string Exactly(size_t size) {
    std::string bytes(size, '\0');
    const ssize_t n = ::recv(stream_.get(), bytes.data(), size, MSG_WAITALL);
    bytes.resize(n < 0 ? 0 : static_cast<size_t>(n));
    return bytes;
  }

  UniqueFd stream_;
  std::string message_;
};

}  // namespace magnetar::ninep::testing
