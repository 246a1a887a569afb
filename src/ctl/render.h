#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "src/ctl/logs.h"
#include "src/ctl/sandboxes.h"

// What magnetarctl prints. The keys of the JSON forms only grow.
namespace magnetar::ctl {

// A table with a heading.
std::string ListText(const std::vector<SandboxView>& sandboxes);
nlohmann::json ListJson(const std::vector<SandboxView>& sandboxes);

std::string InspectText(const SandboxView& sandbox);
nlohmann::json InspectJson(const SandboxView& sandbox);

std::string LogText(const LogLine& line);
nlohmann::json LogJson(const LogLine& line);

// Indented, ASCII alone; bytes that are no UTF-8 are replaced.
std::string Dump(const nlohmann::json& json);

// What came from outside (a guest, a pod's manifest, a log), without what could drive a terminal:
// control characters other than newline and tab, U+0080 to U+009F among them, and bytes that are no
// UTF-8 become "?".
std::string Printable(absl::string_view text);

// The same for one line: newline and tab become "?" too.
std::string PrintableLine(absl::string_view text);

}  // namespace magnetar::ctl
