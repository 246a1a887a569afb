#include "vmm/qemu/qmp_wire.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace magnetar::vmm::qemu {
namespace {

using nlohmann::json;

absl::Status ErrorStatus(const json& error) {
  const std::string kind = StringAt(error, "class");
  const std::string text = StringAt(error, "desc");
  if (kind == "DeviceNotFound") return absl::NotFoundError(text);
  if (kind == "CommandNotFound") return absl::UnimplementedError(text);
  return absl::FailedPreconditionError(text);
}

}  // namespace

std::string StringAt(const json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

uint64_t NumberAt(const json& object, const char* key) {
  if (!object.is_object()) return 0;
  const auto it = object.find(key);
  return it != object.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

absl::StatusOr<QmpMessage> ParseQmp(std::string_view line) {
  json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("QMP: not a JSON object");
  QmpMessage message;
  if (object.contains("QMP")) {
    message.kind = QmpMessage::Kind::kGreeting;
    message.data = std::move(object["QMP"]);
    return message;
  }
  if (object.contains("event")) {
    message.kind = QmpMessage::Kind::kEvent;
    message.event = StringAt(object, "event");
    if (object.contains("data")) message.data = std::move(object["data"]);
    return message;
  }
  message.kind = QmpMessage::Kind::kReply;
  const auto id = object.find("id");
  if (id != object.end() && id->is_number_unsigned()) message.id = id->get<uint64_t>();
  if (object.contains("error")) {
    message.status = ErrorStatus(object["error"]);
    return message;
  }
  if (!object.contains("return")) return absl::InvalidArgumentError("QMP: neither reply nor event");
  message.data = std::move(object["return"]);
  return message;
}

std::string FormatQmp(uint64_t id, const std::string& command, const json& arguments) {
  json message = {{"execute", command}, {"id", id}};
  if (!arguments.is_null()) message["arguments"] = arguments;
  return absl::StrCat(message.dump(-1, ' ', false, json::error_handler_t::replace), "\n");
}

std::optional<std::string> QmpLines::Next() {
  const size_t newline = buffer_.find('\n');
  if (newline == std::string::npos) return std::nullopt;
  std::string line = buffer_.substr(0, newline);
  buffer_.erase(0, newline + 1);
  return line;
}

}  // namespace magnetar::vmm::qemu
