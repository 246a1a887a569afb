#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "wire/ttrpc.pb.h"

// Bodies of Request and Response frames.
namespace magnetar::ttrpc {

// `text` with '?' for each byte that is not part of well-formed UTF-8, and at most `max_bytes` of
// it: Go refuses a whole Response over one bad byte in its message.
std::string ValidUtf8(std::string_view text, size_t max_bytes);

// A Request with more metadata than this is refused before it is built: an empty pair is two bytes
// on the wire and more than a hundred in memory.
inline constexpr size_t kMaxMetadataPairs = 64;

// INVALID_ARGUMENT: no Request. RESOURCE_EXHAUSTED: too much metadata.
absl::StatusOr<Request> DecodeRequest(const std::string& body);

// A Response body, never longer than `max_bytes` (RESOURCE_EXHAUSTED instead).
std::string EncodeResponse(const absl::StatusOr<std::string>& result, size_t max_bytes);

// What a Response carries: a payload, or the error.
absl::StatusOr<std::string> DecodeResponse(const std::string& body);

}  // namespace magnetar::ttrpc
