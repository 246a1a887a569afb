#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Messages of a stdio stream: an Any that holds StreamInit, Data or WindowUpdate.
// Facts: containerd 2.1.9 core/streaming/proxy/streaming.go and
// core/transfer/streaming; type URLs there are bare message names.
namespace magnetar::streaming {

inline constexpr char kStreamingService[] = "containerd.services.streaming.v1.Streaming";
inline constexpr char kStreamMethod[] = "Stream";

// containerd up to 2.2 never closes the connection of a stream: its server does, so long after the
// stream. What crosses its end arrives within that.
inline constexpr std::chrono::milliseconds kLinger{50};

// A peer that grants more means the same.
inline constexpr int64_t kMaxWindowBytes = 16 << 20;

std::string StreamInitFrame(const std::string& id);
// The stream's name in the first message.
absl::StatusOr<std::string> ParseStreamInit(const std::string& message);
// The answer to it: containerd waits for any Any.
std::string AcceptedFrame();
// Bytes granted; INVALID_ARGUMENT if negative or another message.
absl::StatusOr<int64_t> ParseWindowUpdate(const std::string& message);
std::string WindowUpdateFrame(int32_t update);
absl::StatusOr<std::string> ParseData(const std::string& message);
std::string DataFrame(absl::string_view data);

}  // namespace magnetar::streaming
