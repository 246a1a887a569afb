#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Messages of QMP (QEMU's docs/interop/qmp-spec): one JSON object per line.
namespace magnetar::vmm::qemu {

inline constexpr size_t kMaxQmpMessageBytes = 1 << 20;

struct QmpMessage {
  enum class Kind { kGreeting, kReply, kEvent } kind;
  uint64_t id = 0;  // of a reply
  // Of a reply: the error, with QEMU's class and description.
  absl::Status status;
  std::string event;
  nlohmann::json data;  // "return" of a reply, "data" of an event
};

// INVALID_ARGUMENT: no QMP.
absl::StatusOr<QmpMessage> ParseQmp(std::string_view line);

// With the newline.
std::string FormatQmp(uint64_t id, const std::string& command, const nlohmann::json& arguments);

// Members of what QEMU sent, whose shape is not trusted: empty or 0 if it has none
// of that type.
std::string StringAt(const nlohmann::json& object, const char* key);
uint64_t NumberAt(const nlohmann::json& object, const char* key);

// Cuts what was read into lines.
class QmpLines {
 public:
  void Append(std::string_view data) { buffer_.append(data); }
  std::optional<std::string> Next();
  size_t buffered() const { return buffer_.size(); }

 private:
  std::string buffer_;
};

}  // namespace magnetar::vmm::qemu
