#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// ttrpc's framing, without any I/O. Fact: ttrpc 1.2.7 channel.go and PROTOCOL.md.
namespace magnetar::ttrpc {

enum class FrameType : uint8_t { kRequest = 1, kResponse = 2, kData = 3 };

inline constexpr uint8_t kRemoteClosed = 0x01;
inline constexpr uint8_t kRemoteOpen = 0x02;
inline constexpr uint8_t kNoData = 0x04;

inline constexpr size_t kHeaderBytes = 10;

struct FrameHeader {
  uint32_t length = 0;
  uint32_t stream_id = 0;
  FrameType type = FrameType::kRequest;
  uint8_t flags = 0;
};

std::array<char, kHeaderBytes> EncodeHeader(const FrameHeader& header);

struct Frame {
  FrameHeader header;
  std::string body;
  // The body was longer than allowed and has been skipped; `body` is empty.
  bool oversized = false;
};

// Cuts a byte stream into frames. Holds at most one body, and memory only for
// what has come of it.
class FrameParser {
 public:
  explicit FrameParser(size_t max_body_bytes) : max_body_bytes_(max_body_bytes) {}

  // Takes bytes off the front of `input` up to the end of the next frame; nullopt
  // if the frame is not complete, and then all of `input` is taken. An error
  // (unknown type; a length of 16 MiB or more, whose first byte is reserved) means
  // that the stream cannot be followed any further.
  absl::StatusOr<std::optional<Frame>> Next(std::string_view& input);

  // Whether bytes of an incomplete frame are held.
  bool InFrame() const { return header_filled_ > 0; }

 private:
  size_t max_body_bytes_;
  std::array<char, kHeaderBytes> header_bytes_{};
  size_t header_filled_ = 0;
  Frame frame_;
  size_t body_missing_ = 0;
};

}  // namespace magnetar::ttrpc
