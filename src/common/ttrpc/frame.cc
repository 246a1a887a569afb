#include "src/common/ttrpc/frame.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace magnetar::ttrpc {
namespace {
constexpr uint32_t kAbsurdLength = 16 << 20;

void StoreBigEndian(char* out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) *out++ = static_cast<char>(value >> shift);
}

uint32_t LoadBigEndian(const char* in) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(in[i]);
  return value;
}
}  // namespace

std::array<char, kHeaderBytes> EncodeHeader(const FrameHeader& header) {
  std::array<char, kHeaderBytes> out;
  StoreBigEndian(out.data(), header.length);
  StoreBigEndian(out.data() + 4, header.stream_id);
  out[8] = static_cast<char>(header.type);
  out[9] = static_cast<char>(header.flags);
  return out;
}

absl::StatusOr<std::optional<Frame>> FrameParser::Next(std::string_view& input) {
  if (header_filled_ < kHeaderBytes) {
    const size_t n = std::min(kHeaderBytes - header_filled_, input.size());
    std::memcpy(header_bytes_.data() + header_filled_, input.data(), n);
    header_filled_ += n;
    input.remove_prefix(n);
    if (header_filled_ < kHeaderBytes) return std::nullopt;

    const auto type = static_cast<uint8_t>(header_bytes_[8]);
    if (type < 1 || type > 3) {
      return absl::InvalidArgumentError(absl::StrCat("frame of unknown type ", type));
    }
    FrameHeader& header = frame_.header;
    header.length = LoadBigEndian(header_bytes_.data());
    header.stream_id = LoadBigEndian(header_bytes_.data() + 4);
    header.type = static_cast<FrameType>(type);
    header.flags = static_cast<uint8_t>(header_bytes_[9]);
    if (header.length >= kAbsurdLength) {
      return absl::InvalidArgumentError(absl::StrCat("frame of ", header.length, " bytes"));
    }
    frame_.oversized = header.length > max_body_bytes_;
    body_missing_ = header.length;
  }

  const size_t n = std::min(body_missing_, input.size());
  if (!frame_.oversized) frame_.body.append(input.substr(0, n));
  body_missing_ -= n;
  input.remove_prefix(n);
  if (body_missing_ > 0) return std::nullopt;
  header_filled_ = 0;
  return std::exchange(frame_, Frame{});
}

}  // namespace magnetar::ttrpc
