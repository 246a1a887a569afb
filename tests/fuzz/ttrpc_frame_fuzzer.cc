// The frame codec: the same bytes give the same frames however they are cut.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "src/common/ttrpc/frame.h"
#include "src/common/ttrpc/wire.h"

namespace {

using magnetar::ttrpc::Frame;
using magnetar::ttrpc::FrameParser;

constexpr size_t kMaxBody = 512;

struct Parsed {
  std::vector<Frame> frames;
  bool failed = false;
};

Parsed Parse(std::string_view bytes, size_t piece) {
  FrameParser parser(kMaxBody);
  Parsed out;
  while (!bytes.empty()) {
    std::string_view input = bytes.substr(0, piece);
    bytes.remove_prefix(input.size());
    while (!input.empty()) {
      auto frame = parser.Next(input);
      if (!frame.ok()) {
        out.failed = true;
        return out;
      }
      if (!frame->has_value()) {
        if (!input.empty()) std::abort();
        break;
      }
      if ((*frame)->body.size() > kMaxBody) std::abort();
      out.frames.push_back(*std::move(*frame));
    }
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Parsed whole = Parse(bytes, bytes.size());
  const Parsed cut = Parse(bytes, data[0] % 31 + 1);
  if (whole.failed != cut.failed || whole.frames.size() != cut.frames.size()) std::abort();
  for (size_t i = 0; i < whole.frames.size(); ++i) {
    if (whole.frames[i].body != cut.frames[i].body) std::abort();
    if (magnetar::ttrpc::EncodeHeader(whole.frames[i].header) !=
        magnetar::ttrpc::EncodeHeader(cut.frames[i].header)) {
      std::abort();
    }
    const auto response = magnetar::ttrpc::DecodeResponse(whole.frames[i].body);
    if (response.ok() && response->size() > kMaxBody) std::abort();
  }
  return 0;
}
