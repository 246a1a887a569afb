#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

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

// Indented; bytes that are no UTF-8 are replaced.
std::string Dump(const nlohmann::json& json);

// What came from a guest, without what could drive a terminal: control characters other than
// newline and tab become "?".
std::string Printable(const std::string& text);

}  // namespace magnetar::ctl
