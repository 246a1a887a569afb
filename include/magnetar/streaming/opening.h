#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace magnetar::streaming {

// Tells from the first bytes of a client's ttrpc connection whether it opens a stdio stream, and
// which. containerd opens a connection for each (core/streaming/proxy of 2.1.9): a Request, then
// the name in a StreamInit, and nothing more before that is answered.
class Opening {
 public:
  // No stream's opening is longer.
  static constexpr size_t kMaxBytes = 4096;

  // True once it is known. No more than kMaxBytes are needed for that.
  bool Add(std::string_view bytes);

  // All that was added.
  const std::string& bytes() const { return bytes_; }
  // nullopt: it is anything else.
  const std::optional<std::string>& stream_id() const { return stream_id_; }

 private:
  std::string bytes_;
  std::optional<std::string> stream_id_;
};

}  // namespace magnetar::streaming
