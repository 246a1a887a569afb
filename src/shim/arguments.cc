#include "src/shim/arguments.h"

#include <map>

#include "absl/strings/str_cat.h"

namespace magnetar::shim {

absl::StatusOr<Arguments> ParseArguments(const std::vector<std::string>& words) {
  Arguments out;
  std::string ignored;
  const std::map<std::string, std::string*> values = {{"namespace", &out.containerd_namespace},
                                                      {"id", &out.id},
                                                      {"bundle", &out.bundle},
                                                      {"address", &out.address},
                                                      {"publish-binary", &out.publish_binary},
                                                      // For shims that stay: this one does not.
                                                      {"socket", &ignored},
                                                      {"debug-socket", &ignored}};
  const std::map<std::string, bool*> switches = {
      {"debug", &out.debug}, {"info", &out.info}, {"v", &out.version}, {"version", &out.version}};
  size_t i = 0;
  for (; i < words.size() && words[i].size() > 1 && words[i][0] == '-'; ++i) {
    if (words[i] == "--") {
      ++i;
      break;
    }
    std::string name = words[i].substr(words[i][1] == '-' ? 2 : 1);
    std::string value;
    const size_t equals = name.find('=');
    const bool has_value = equals != std::string::npos;
    if (has_value) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    if (const auto it = switches.find(name); it != switches.end()) {
      *it->second = !has_value || (value != "false" && value != "0");
      continue;
    }
    const auto it = values.find(name);
    if (it == values.end()) return absl::InvalidArgumentError(absl::StrCat("unknown flag -", name));
    if (!has_value) {
      if (i + 1 == words.size()) {
        return absl::InvalidArgumentError(absl::StrCat("flag -", name, " needs a value"));
      }
      value = words[++i];
    }
    *it->second = value;
  }
  if (i < words.size()) out.action = words[i];
  return out;
}

}  // namespace magnetar::shim
