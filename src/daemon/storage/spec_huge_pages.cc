#include "src/daemon/storage/spec_huge_pages.h"

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

// The kernel writes "no limit" as a number near 2^63.
constexpr uint64_t kNoLimit = uint64_t{1} << 60;

constexpr struct {
  const char* unit;
  uint64_t bytes;
} kUnits[] = {{"KB", 1 << 10}, {"MB", 1 << 20}, {"GB", 1 << 30}};

}  // namespace

absl::StatusOr<uint64_t> PageSizeBytes(const std::string& text) {
  for (const auto& known : kUnits) {
    absl::string_view number = text;
    uint64_t count = 0;
    if (absl::ConsumeSuffix(&number, known.unit) && absl::SimpleAtoi(number, &count) &&
        count != 0 && count <= kNoLimit / known.bytes) {
      return count * known.bytes;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::CHexEscape(text), "\" is no size of a page"));
}

absl::Status RewriteHugePages(Json& resources, const SpecRequest& request, RewrittenSpec& result) {
  if (!HasContent(resources, "hugepageLimits") && !request.huge_page_limits.empty()) {
    Json limits = Json::array();
    for (const HugePageLimit& limit : request.huge_page_limits) {
      limits.push_back({{"pageSize", limit.page_size}, {"limit", limit.bytes}});
    }
    resources["hugepageLimits"] = std::move(limits);
  }
  absl::StatusOr<Json*> limits = FindArray(resources, "linux.resources", "hugepageLimits");
  if (!limits.ok()) return limits.status();
  if (*limits == nullptr) return absl::OkStatus();
  for (size_t i = 0; i < (*limits)->size(); ++i) {
    Json& limit = (**limits)[i];
    const std::string where = absl::StrCat("linux.resources.hugepageLimits[", i, "]");
    if (!limit.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("spec: ", where, " is no object"));
    }
    const absl::StatusOr<std::string> size = FindString(limit, where, "pageSize");
    if (!size.ok()) return size.status();
    const absl::StatusOr<uint64_t> bytes = PageSizeBytes(*size);
    if (!bytes.ok()) return Annotate(bytes.status(), where);
    const auto most = limit.find("limit");
    if (most == limit.end() || !most->is_number_unsigned()) continue;
    const uint64_t value = most->get<uint64_t>();
    if (value != 0 && value < kNoLimit) {
      result.huge_pages.push_back({*bytes, value, absl::StrCat(where, " ", *size)});
    }
  }
  return absl::OkStatus();
}

}  // namespace magnetar::daemon
