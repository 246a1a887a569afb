#include "src/shim/find_sandbox.h"

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"

namespace magnetar::shim {
namespace {

constexpr size_t kLimit = 64 << 10;

// "/run/x/<id>" of "hvsock:///run/x/<id>/vm.vsock:1024"; empty if it is no such address.
std::string DirectoryOfAddress(absl::string_view address) {
  if (!absl::ConsumePrefix(&address, "hvsock://")) return "";
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return "";
  address = address.substr(0, colon);
  if (!absl::ConsumeSuffix(&address, "/vm.vsock") || !absl::StartsWith(address, "/")) return "";
  return std::string(address);
}

}  // namespace

absl::StatusOr<std::string> FindSandbox(const std::string& bundle,
                                        const std::string& default_run_dir) {
  if (auto text = ReadFile(absl::StrCat(bundle, "/bootstrap.json"), kLimit); text.ok()) {
    const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (json.is_object()) {
      const auto address = json.find("address");
      if (address != json.end() && address->is_string()) {
        std::string directory = DirectoryOfAddress(address->get<std::string>());
        if (!directory.empty()) return directory;
      }
    }
  }
  if (auto text = ReadFile(absl::StrCat(bundle, "/sandbox"), kLimit); text.ok()) {
    const std::string id(absl::StripAsciiWhitespace(*text));
    if (ValidateId(id, "sandbox").ok()) return absl::StrCat(default_run_dir, "/", id);
  }
  return absl::NotFoundError(absl::StrCat("bundle ", bundle, " tells of no sandbox"));
}

}  // namespace magnetar::shim
