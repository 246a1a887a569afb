#include "magnetar/spec_json.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace magnetar {
namespace {

constexpr int kMaxDepth = 64;

bool TooDeep(const std::string& text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

std::string Name(const std::string& where, const char* key) {
  return where.empty() ? std::string(key) : absl::StrCat(where, ".", key);
}

absl::Status WrongType(const std::string& name, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat("spec: ", name, " is no ", wanted));
}

Json* Find(Json& parent, const char* key) {
  const auto it = parent.find(key);
  return it == parent.end() || it->is_null() ? nullptr : &*it;
}

}  // namespace

absl::StatusOr<Json> ParseSpecJson(const std::string& text) {
  if (TooDeep(text)) return absl::InvalidArgumentError("spec: nested too deeply");
  Json spec = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (spec.is_discarded()) return absl::InvalidArgumentError("spec: no valid JSON");
  if (!spec.is_object()) return absl::InvalidArgumentError("spec: no JSON object");
  return spec;
}

absl::StatusOr<Json*> FindObject(Json& parent, const std::string& where, const char* key) {
  Json* member = Find(parent, key);
  if (member != nullptr && !member->is_object()) return WrongType(Name(where, key), "object");
  return member;
}

absl::StatusOr<Json*> FindArray(Json& parent, const std::string& where, const char* key) {
  Json* member = Find(parent, key);
  if (member != nullptr && !member->is_array()) return WrongType(Name(where, key), "array");
  return member;
}

absl::StatusOr<std::string> FindString(Json& parent, const std::string& where, const char* key) {
  Json* member = Find(parent, key);
  if (member == nullptr) return std::string();
  if (!member->is_string()) return WrongType(Name(where, key), "string");
  return member->get_ref<const std::string&>();
}

absl::StatusOr<std::vector<std::string>> FindStrings(Json& parent, const std::string& where,
                                                     const char* key) {
  absl::StatusOr<Json*> array = FindArray(parent, where, key);
  if (!array.ok()) return array.status();
  std::vector<std::string> strings;
  if (*array == nullptr) return strings;
  for (const Json& element : **array) {
    if (!element.is_string()) return WrongType(Name(where, key), "array of strings");
    strings.push_back(element.get_ref<const std::string&>());
  }
  return strings;
}

bool HasContent(const Json& parent, const char* key) {
  const auto it = parent.find(key);
  if (it == parent.end() || it->is_null()) return false;
  if (it->is_string()) return !it->get_ref<const std::string&>().empty();
  return !it->is_structured() || !it->empty();
}

}  // namespace magnetar
