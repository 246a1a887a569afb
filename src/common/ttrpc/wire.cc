#include "src/common/ttrpc/wire.h"

#include "absl/strings/str_cat.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::ttrpc {
namespace {

// A status message is for people; one without end would only fill the frame.
constexpr size_t kMaxStatusMessageBytes = 64 << 10;

std::string EncodeError(absl::StatusCode code, absl::string_view message) {
  Response response;
  response.mutable_status()->set_code(static_cast<int>(code));
  response.mutable_status()->set_message(std::string(message.substr(0, kMaxStatusMessageBytes)));
  return response.SerializeAsString();
}

}  // namespace

std::string EncodeResponse(const absl::StatusOr<std::string>& result, size_t max_bytes) {
  if (!result.ok()) return EncodeError(result.status().code(), result.status().message());
  Response response;
  response.set_payload(*result);
  if (response.ByteSizeLong() > max_bytes) {
    return EncodeError(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("response of ", result->size(), " bytes is too large to send"));
  }
  return response.SerializeAsString();
}

absl::StatusOr<std::string> DecodeResponse(const std::string& body) {
  Response response;
  if (!response.ParseFromString(body)) return absl::InternalError("response does not parse");
  if (response.status().code() == 0) return std::move(*response.mutable_payload());
  auto code = static_cast<absl::StatusCode>(response.status().code());
  if (response.status().code() < 0 || code > absl::StatusCode::kUnauthenticated) {
    code = absl::StatusCode::kUnknown;
  }
  return absl::Status(code, response.status().message());
}

}  // namespace magnetar::ttrpc
