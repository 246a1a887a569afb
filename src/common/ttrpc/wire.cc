#include "src/common/ttrpc/wire.h"

#include <google/protobuf/io/coded_stream.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace magnetar::ttrpc {
namespace {

// A status message is for people; one without end would only fill the frame, or a log.
constexpr size_t kMaxStatusMessageBytes = 64 << 10;

// Bytes of the well-formed character at the start of `text`; 0 if there is none. The ranges are
// those of table 3-7 of the Unicode standard: no overlong forms, no surrogates, no more than
// U+10FFFF.
size_t CharacterBytes(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return 1;
  const size_t size = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (size == 0 || text.size() < size) return 0;
  const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (at(1) < low || at(1) > high) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((at(i) & 0xc0) != 0x80) return 0;
  }
  return size;
}

std::string EncodeError(absl::StatusCode code, absl::string_view message) {
  Response response;
  response.mutable_status()->set_code(static_cast<int>(code));
  response.mutable_status()->set_message(
      ValidUtf8({message.data(), message.size()}, kMaxStatusMessageBytes));
  return response.SerializeAsString();
}

// How often the field stands in a message, whose bytes may be anything: it need not parse.
size_t CountField(const std::string& message, uint32_t field) {
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(message.data()),
                                               static_cast<int>(message.size()));
  size_t count = 0;
  while (const uint32_t tag = input.ReadTag()) {
    if (tag >> 3 == field) ++count;
    uint64_t number = 0;
    uint32_t length = 0;
    bool skipped = true;
    switch (tag & 7) {
      case 0:
        skipped = input.ReadVarint64(&number);
        break;
      case 1:
        skipped = input.Skip(8);
        break;
      case 2:
        skipped = input.ReadVarint32(&length) && length <= message.size() &&
                  input.Skip(static_cast<int>(length));
        break;
      case 5:
        skipped = input.Skip(4);
        break;
      default:
        // Groups, whose marks hold nothing. What stands in one is counted, too.
        break;
    }
    if (!skipped) break;
  }
  return count;
}

}  // namespace

absl::StatusOr<Request> DecodeRequest(const std::string& body) {
  if (CountField(body, Request::kMetadataFieldNumber) > kMaxMetadataPairs) {
    return absl::ResourceExhaustedError(
        absl::StrCat("request with more than ", kMaxMetadataPairs, " metadata entries"));
  }
  Request request;
  if (!request.ParseFromString(body)) return absl::InvalidArgumentError("request does not parse");
  return request;
}

std::string ValidUtf8(std::string_view text, size_t max_bytes) {
  std::string out;
  out.reserve(std::min(text.size(), max_bytes));
  while (!text.empty()) {
    const size_t size = CharacterBytes(text);
    const size_t taken = std::max<size_t>(size, 1);
    if (out.size() + taken > max_bytes) break;
    if (size == 0) {
      out.push_back('?');
    } else {
      out.append(text.substr(0, size));
    }
    text.remove_prefix(taken);
  }
  return out;
}

std::string EncodeResponse(const absl::StatusOr<std::string>& result, size_t max_bytes) {
  if (!result.ok()) return EncodeError(result.status().code(), result.status().message());
  Response response;
  response.set_payload(*result);
  if (response.ByteSizeLong() > max_bytes) {
    return EncodeError(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("response of ", result->size(), " bytes is too large to send"));
  }
  return response.SerializeAsString();
}

absl::StatusOr<std::string> DecodeResponse(const std::string& body) {
  Response response;
  if (!response.ParseFromString(body)) return absl::InternalError("response does not parse");
  if (response.status().code() == 0) return std::move(*response.mutable_payload());
  auto code = static_cast<absl::StatusCode>(response.status().code());
  if (response.status().code() < 0 || code > absl::StatusCode::kUnauthenticated) {
    code = absl::StatusCode::kUnknown;
  }
  return absl::Status(code, ValidUtf8(response.status().message(), kMaxStatusMessageBytes));
}

}  // namespace magnetar::ttrpc
