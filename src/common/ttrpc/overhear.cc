#include "magnetar/ttrpc/overhear.h"

#include <utility>

#include "src/common/ttrpc/frame.h"
#include "src/common/ttrpc/wire.h"

namespace magnetar::ttrpc {
namespace {

// The frames of one direction, as long as they can be followed.
class Direction {
 public:
  explicit Direction(size_t max_body_bytes) : parser_(max_body_bytes) {}

  template <typename Sink>
  void Add(std::string_view bytes, Sink sink) {
    while (!bytes.empty() && !lost_) {
      const auto frame = parser_.Next(bytes);
      if (!frame.ok()) {
        lost_ = true;
      } else if (frame->has_value()) {
        sink(**frame);
      }
    }
  }

 private:
  FrameParser parser_;
  bool lost_ = false;
};

}  // namespace

struct Overhear::State {
  explicit State(Ears e) : ears(std::move(e)) {}

  const Ears ears;
  Direction client{kMaxRequestBytes};
  // Nothing is kept of what a response says.
  Direction server{0};
};

Overhear::Overhear(Ears ears) : state_(std::make_unique<State>(std::move(ears))) {}
Overhear::~Overhear() = default;

void Overhear::FromClient(std::string_view bytes) {
  state_->client.Add(bytes, [this](const Frame& frame) {
    if (frame.header.type != FrameType::kRequest || frame.oversized) return;
    auto request = DecodeRequest(frame.body);
    if (!request.ok()) return;
    state_->ears.request(
        {frame.header.stream_id, request->service(), request->method(), request->payload()});
  });
}

void Overhear::FromServer(std::string_view bytes) {
  state_->server.Add(bytes, [this](const Frame& frame) {
    if (frame.header.type == FrameType::kResponse) state_->ears.response(frame.header.stream_id);
  });
}

}  // namespace magnetar::ttrpc
