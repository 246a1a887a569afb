#include "magnetar/ids.h"

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace magnetar {
namespace {
constexpr size_t kMaxIdBytes = 76;

bool IsSeparator(char c) { return c == '-' || c == '_' || c == '.'; }
}  // namespace

absl::Status ValidateId(std::string_view id_view, std::string_view field_view) {
  // Debian's abseil has a string_view of its own.
  const absl::string_view id(id_view.data(), id_view.size());
  const absl::string_view field(field_view.data(), field_view.size());
  if (id.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": must not be empty"));
  if (id.size() > kMaxIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", id.size(), " bytes are more than ", kMaxIdBytes));
  }
  bool after_separator = true;
  for (const char c : id) {
    const bool separator = IsSeparator(c);
    if ((separator && after_separator) ||
        (!separator && !absl::ascii_isalnum(static_cast<unsigned char>(c)))) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": \"", absl::CHexEscape(id),
                       "\" is not alphanumerics joined by single '-', '_' or '.'"));
    }
    after_separator = separator;
  }
  if (after_separator) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": \"", absl::CHexEscape(id), "\" ends in a separator"));
  }
  return absl::OkStatus();
}

}  // namespace magnetar
