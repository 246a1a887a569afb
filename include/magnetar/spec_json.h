#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Access to JSON that never throws: whatever the document, a member is there with
// the wanted type, absent (also: null), or an INVALID_ARGUMENT that names it.
namespace magnetar {

using Json = nlohmann::json;

// INVALID_ARGUMENT for what is no object or nested deeper than any spec is: the library
// recurses when it writes and destroys.
absl::StatusOr<Json> ParseSpecJson(const std::string& text);

// nullptr: absent. `where` is the parent's name for messages: "linux", or "" at the top.
absl::StatusOr<Json*> FindObject(Json& parent, const std::string& where, const char* key);
absl::StatusOr<Json*> FindArray(Json& parent, const std::string& where, const char* key);
// Empty: absent.
absl::StatusOr<std::string> FindString(Json& parent, const std::string& where, const char* key);
absl::StatusOr<std::vector<std::string>> FindStrings(Json& parent, const std::string& where,
                                                     const char* key);
// Whether a member is there and says something: not null, not an empty object, array or string.
bool HasContent(const Json& parent, const char* key);

}  // namespace magnetar
