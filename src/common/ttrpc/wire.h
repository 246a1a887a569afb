#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/ttrpc/ttrpc.h"

// Bodies of Request and Response frames.
namespace magnetar::ttrpc {

// A Response body, never longer than `max_bytes` (RESOURCE_EXHAUSTED instead).
std::string EncodeResponse(const absl::StatusOr<std::string>& result, size_t max_bytes);

// What a Response carries: a payload, or the error.
absl::StatusOr<std::string> DecodeResponse(const std::string& body);

}  // namespace magnetar::ttrpc
