#include "src/ninep/wire.h"

#include <utility>

namespace magnetar::ninep {

std::string_view Reader::Bytes(size_t size) {
  if (!ok_ || size > rest_.size()) {
    ok_ = false;
    return {};
  }
  const std::string_view bytes = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return bytes;
}

uint64_t Reader::Number(size_t size) {
  uint64_t value = 0;
  const std::string_view bytes = Bytes(size);
  for (size_t i = 0; i < bytes.size(); ++i) {
    value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  }
  return value;
}

Writer::Writer(uint8_t type, uint16_t tag) {
  U32(0);
  U8(type);
  U16(tag);
}

void Writer::Number(uint64_t value, size_t size) {
  for (size_t i = 0; i < size; ++i) message_.push_back(static_cast<char>(value >> (8 * i)));
}

void Writer::String(std::string_view value) {
  U16(static_cast<uint16_t>(value.size()));
  message_.append(value);
}

void Writer::Put(const Qid& qid) {
  U8(qid.type);
  U32(0);
  U64(qid.path);
}

char* Writer::Reserve(size_t size) {
  const size_t at = message_.size();
  message_.resize(at + size);
  return message_.data() + at;
}

void Writer::SetU32(size_t at, uint32_t value) {
  for (size_t i = 0; i < 4; ++i) message_[at + i] = static_cast<char>(value >> (8 * i));
}

std::string Writer::Finish() && {
  SetU32(0, static_cast<uint32_t>(message_.size()));
  return std::move(message_);
}

std::string ErrorMessage(uint16_t tag, int error) {
  Writer writer(kRlerror, tag);
  writer.U32(static_cast<uint32_t>(error));
  return std::move(writer).Finish();
}

}  // namespace magnetar::ninep
