#pragma once

#include <cstdint>
#include <string>
#include <string_view>

// Messages of 9P2000.L, as Linux speaks it (net/9p/protocol.c, include/net/9p/9p.h of 6.1):
// size[4] type[1] tag[2] and the fields of the type, all little-endian.
namespace magnetar::ninep {

inline constexpr uint32_t kHeaderBytes = 7;
// In front of the data of a read and of a directory's entries.
inline constexpr uint32_t kReadHeaderBytes = kHeaderBytes + 4;
// What Linux sets aside for the header of either (P9_IOHDRSZ).
inline constexpr uint32_t kIoHeaderBytes = 24;

// Requests; each one's answer is the next number.
enum Type : uint8_t {
  kRlerror = 7,
  kTstatfs = 8,
  kTlopen = 12,
  kTlcreate = 14,
  kTsymlink = 16,
  kTmknod = 18,
  kTreadlink = 22,
  kTgetattr = 24,
  kTsetattr = 26,
  kTxattrwalk = 30,
  kTxattrcreate = 32,
  kTreaddir = 40,
  kTfsync = 50,
  kTlock = 52,
  kTgetlock = 54,
  kTlink = 70,
  kTmkdir = 72,
  kTrenameat = 74,
  kTunlinkat = 76,
  kTversion = 100,
  kTattach = 104,
  kTflush = 108,
  kTwalk = 110,
  kTread = 116,
  kTwrite = 118,
  kTclunk = 120,
  kTremove = 122,
};

struct Qid {
  uint8_t type = 0;
  uint64_t path = 0;
};

// Takes a message apart. Once a field is not there, it and all after it are 0 or empty.
class Reader {
 public:
  explicit Reader(std::string_view message) : rest_(message) {}

  uint8_t U8() { return static_cast<uint8_t>(Number(1)); }
  uint16_t U16() { return static_cast<uint16_t>(Number(2)); }
  uint32_t U32() { return static_cast<uint32_t>(Number(4)); }
  uint64_t U64() { return Number(8); }
  std::string_view Bytes(size_t size);
  std::string_view String() { return Bytes(U16()); }

  // False if a field was not there.
  bool ok() const { return ok_; }

 private:
  uint64_t Number(size_t size);

  std::string_view rest_;
  bool ok_ = true;
};

// Puts one together.
class Writer {
 public:
  Writer(uint8_t type, uint16_t tag);

  void U8(uint8_t value) { Number(value, 1); }
  void U16(uint16_t value) { Number(value, 2); }
  void U32(uint32_t value) { Number(value, 4); }
  void U64(uint64_t value) { Number(value, 8); }
  void String(std::string_view value);
  void Put(const Qid& qid);
  // Room for `size` bytes, to be written before anything is added; Shrink gives the end of it back.
  char* Reserve(size_t size);
  void Shrink(size_t by) { message_.resize(message_.size() - by); }
  void SetU32(size_t at, uint32_t value);
  size_t size() const { return message_.size(); }

  // The whole message, with its size.
  std::string Finish() &&;

 private:
  void Number(uint64_t value, size_t size);

  std::string message_;
};

std::string ErrorMessage(uint16_t tag, int error);

}  // namespace magnetar::ninep
