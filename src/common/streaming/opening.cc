#include "magnetar/streaming/opening.h"

#include "absl/status/statusor.h"
#include "magnetar/streaming/frames.h"
#include "src/common/ttrpc/frame.h"
#include "src/common/ttrpc/wire.h"

namespace magnetar::streaming {

bool Opening::Add(std::string_view bytes) {
  bytes_.append(bytes);
  std::string_view rest = bytes_;
  ttrpc::FrameParser parser(kMaxBytes);
  const auto first = parser.Next(rest);
  // What is wrong is for the guest to refuse.
  if (!first.ok()) return true;
  if (!first->has_value()) return bytes_.size() >= kMaxBytes;
  if ((*first)->header.type != ttrpc::FrameType::kRequest) return true;
  const auto request = ttrpc::DecodeRequest((*first)->body);
  if (!request.ok() || request->service() != kStreamingService ||
      request->method() != kStreamMethod) {
    return true;
  }
  const auto second = parser.Next(rest);
  if (!second.ok()) return true;
  if (!second->has_value()) return bytes_.size() >= kMaxBytes;
  if ((*second)->header.type != ttrpc::FrameType::kData) return true;
  auto id = ParseStreamInit((*second)->body);
  if (id.ok()) stream_id_ = *std::move(id);
  return true;
}

}  // namespace magnetar::streaming
