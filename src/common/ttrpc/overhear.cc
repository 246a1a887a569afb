#include "magnetar/ttrpc/overhear.h"

#include <utility>

#include "src/common/ttrpc/frame.h"
#include "src/common/ttrpc/wire.h"

namespace magnetar::ttrpc {

struct Overhear::State {
  explicit State(Heard h) : heard(std::move(h)) {}

  // False: these bytes cannot be followed.
  bool Next(std::string_view& bytes) {
    const auto frame = parser.Next(bytes);
    if (!frame.ok()) return false;
    if (!frame->has_value() || (*frame)->header.type != FrameType::kRequest) return true;
    if ((*frame)->oversized) return true;
    const auto request = DecodeRequest((*frame)->body);
    if (request.ok()) heard(request->service(), request->method(), request->payload());
    return true;
  }

  const Heard heard;
  FrameParser parser{kMaxRequestBytes};
  bool lost = false;
};

Overhear::Overhear(Heard heard) : state_(std::make_unique<State>(std::move(heard))) {}
Overhear::~Overhear() = default;
Overhear::Overhear(Overhear&&) noexcept = default;

void Overhear::Add(std::string_view bytes) {
  while (!bytes.empty() && !state_->lost) state_->lost = !state_->Next(bytes);
}

}  // namespace magnetar::ttrpc
