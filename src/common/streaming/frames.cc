#include "magnetar/streaming/frames.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "containerd/streaming.pb.h"
#include "containerd/transfer.pb.h"
#include "wire/wkt.pb.h"

namespace magnetar::streaming {
namespace {

constexpr absl::string_view kInit = "containerd.services.streaming.v1.StreamInit";
constexpr absl::string_view kData = "containerd.types.transfer.Data";
constexpr absl::string_view kWindowUpdate = "containerd.types.transfer.WindowUpdate";

// The body of an Any of type `name`, which may come behind "type.googleapis.com/".
template <typename Message>
absl::StatusOr<Message> Unpack(const std::string& message, absl::string_view name) {
  wire::Any any;
  if (!any.ParseFromString(message)) return absl::InvalidArgumentError("not an Any");
  absl::string_view type = any.type_url();
  const size_t slash = type.rfind('/');
  if (slash != absl::string_view::npos) type.remove_prefix(slash + 1);
  if (type != name) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", name, ", got \"", absl::CHexEscape(type.substr(0, 128)), "\""));
  }
  Message out;
  if (!out.ParseFromString(any.value())) {
    return absl::InvalidArgumentError(absl::StrCat(name, " does not parse"));
  }
  return out;
}

template <typename Message>
std::string Pack(const Message& message, absl::string_view name) {
  wire::Any any;
  any.set_type_url(std::string(name));
  message.SerializeToString(any.mutable_value());
  return any.SerializeAsString();
}

}  // namespace

std::string StreamInitFrame(const std::string& id) {
  containerd::services::streaming::v1::StreamInit message;
  message.set_id(id);
  return Pack(message, kInit);
}

absl::StatusOr<std::string> ParseStreamInit(const std::string& message) {
  auto init = Unpack<containerd::services::streaming::v1::StreamInit>(message, kInit);
  if (!init.ok()) return init.status();
  return init->id();
}

std::string AcceptedFrame() {
  return Pack(wire::Empty(), "type.googleapis.com/google.protobuf.Empty");
}

absl::StatusOr<int64_t> ParseWindowUpdate(const std::string& message) {
  auto update = Unpack<containerd::types::transfer::WindowUpdate>(message, kWindowUpdate);
  if (!update.ok()) return update.status();
  if (update->update() < 0) return absl::InvalidArgumentError("negative window update");
  return update->update();
}

std::string WindowUpdateFrame(int32_t update) {
  containerd::types::transfer::WindowUpdate message;
  message.set_update(update);
  return Pack(message, kWindowUpdate);
}

absl::StatusOr<std::string> ParseData(const std::string& message) {
  auto data = Unpack<containerd::types::transfer::Data>(message, kData);
  if (!data.ok()) return data.status();
  return std::move(*data->mutable_data());
}

std::string DataFrame(absl::string_view data) {
  containerd::types::transfer::Data message;
  message.set_data(data.data(), data.size());
  return Pack(message, kData);
}

}  // namespace magnetar::streaming
