#include "src/daemon/config/config.h"

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <set>
#include <utility>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::daemon {
namespace {

// Where a value is read into; an error says what is wrong with it.
using Setter = std::function<absl::Status(const toml::node&)>;

absl::Status Wrong(absl::string_view what) { return absl::InvalidArgumentError(what); }

Setter Text(std::string* out) {
  return [out](const toml::node& node) {
    const auto value = node.value_exact<std::string>();
    if (!value) return Wrong("must be a string");
    *out = *value;
    return absl::OkStatus();
  };
}

Setter Path(std::string* out) {
  return [out](const toml::node& node) {
    const auto value = node.value_exact<std::string>();
    if (!value) return Wrong("must be a string");
    if (value->empty() || value->front() != '/') return Wrong("must be an absolute path");
    *out = *value;
    return absl::OkStatus();
  };
}

// A directory whose sockets must fit into sockaddr_un beside an id of 64 digits:
// "<dir>/<id>/vmm/virtiofs.sock".
Setter ShortPath(std::string* out, size_t limit) {
  return [out, limit](const toml::node& node) {
    absl::Status status = Path(out)(node);
    if (status.ok() && out->size() > limit) {
      return Wrong(absl::StrCat("must not be longer than ", limit,
                                " bytes, so that the names of sockets below it fit"));
    }
    return status;
  };
}

// A sandbox's directory stands in the address of its tasks, "ttrpc+hvsock://<path>:<port>?<query>".
Setter AddressPath(std::string* out, size_t limit) {
  return [out, limit](const toml::node& node) {
    absl::Status status = ShortPath(out, limit)(node);
    const bool plain = std::all_of(out->begin(), out->end(), [](char c) {
      return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
             std::string_view("/._+-").find(c) != std::string_view::npos;
    });
    if (status.ok() && !plain) return Wrong("may hold letters, digits and / . _ + - only");
    return status;
  };
}

// Where to listen: "host:port", "[v6]:port" or "unix:/path"; empty: nowhere.
Setter ListenAddress(std::string* out) {
  return [out](const toml::node& node) {
    const auto value = node.value_exact<std::string>();
    if (!value) return Wrong("must be a string");
    absl::string_view rest = *value;
    if (rest.empty()) {
      out->clear();
      return absl::OkStatus();
    }
    if (absl::ConsumePrefix(&rest, "unix:")) {
      std::string path;
      absl::Status status = ShortPath(&path, 100)(toml::value<std::string>(std::string(rest)));
      if (status.ok()) *out = *value;
      return status;
    }
    const size_t colon = rest.rfind(':');
    const absl::string_view host = rest.substr(0, colon);
    uint32_t port = 0;
    const bool whole = colon != absl::string_view::npos && !host.empty() &&
                       absl::SimpleAtoi(rest.substr(colon + 1), &port) && port > 0 && port <= 65535;
    const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
    if (!whole || (!bracketed && host.find_first_of(":[]") != absl::string_view::npos)) {
      return Wrong("must be empty, \"host:port\", \"[IPv6 address]:port\" or \"unix:/path\"");
    }
    *out = *value;
    return absl::OkStatus();
  };
}

Setter OneOf(std::string* out, std::initializer_list<std::string> choices) {
  return [out, choices = std::set<std::string>(choices)](const toml::node& node) {
    const auto value = node.value_exact<std::string>();
    if (!value || choices.count(*value) == 0) {
      return Wrong(absl::StrCat("must be one of ", absl::StrJoin(choices, ", ")));
    }
    *out = *value;
    return absl::OkStatus();
  };
}

Setter Number(std::function<void(int64_t)> set, int64_t least, int64_t most) {
  return [set = std::move(set), least, most](const toml::node& node) {
    const auto value = node.value_exact<int64_t>();
    if (!value) return Wrong("must be an integer");
    if (*value < least || *value > most) {
      return Wrong(absl::StrCat("must be between ", least, " and ", most));
    }
    set(*value);
    return absl::OkStatus();
  };
}

template <typename T>
Setter Integer(T* out, int64_t least, int64_t most) {
  return Number([out](int64_t value) { *out = static_cast<T>(value); }, least, most);
}

template <typename Duration>
Setter Time(Duration* out, int64_t least, int64_t most) {
  return Number([out](int64_t value) { *out = Duration(value); }, least, most);
}

Setter TextList(std::vector<std::string>* out) {
  return [out](const toml::node& node) {
    const toml::array* array = node.as_array();
    if (array == nullptr) return Wrong("must be a list of strings");
    out->clear();
    for (const toml::node& element : *array) {
      const auto value = element.value_exact<std::string>();
      if (!value) return Wrong("must be a list of strings");
      out->push_back(*value);
    }
    return absl::OkStatus();
  };
}

Setter SomeOf(std::vector<std::string>* out, std::initializer_list<std::string> choices) {
  return [out, choices = std::set<std::string>(choices)](const toml::node& node) {
    MAGNETAR_RETURN_IF_ERROR(TextList(out)(node));
    for (const std::string& value : *out) {
      if (choices.count(value) == 0) {
        return Wrong(absl::StrCat("may hold ", absl::StrJoin(choices, ", "), " only"));
      }
    }
    return absl::OkStatus();
  };
}

using KeysOfTable = std::map<std::string, Setter>;

constexpr int64_t kMebibytes = 1 << 24;
constexpr char kHandlers[] = "handlers";

KeysOfTable SizingKeys(Config::Sizing& s) {
  return {{"vcpus", Integer(&s.vcpus, 1, 255)},
          {"memory_mib", Integer(&s.memory_mib, 128, kMebibytes)},
          {"overhead_mib", Integer(&s.overhead_mib, 0, kMebibytes)},
          {"max_vcpus", Integer(&s.max_vcpus, 1, 255)},
          {"max_memory_mib", Integer(&s.max_memory_mib, 0, kMebibytes)},
          {"annotations", SomeOf(&s.annotations, {"vcpus", "memory_mib"})}};
}

// The keys of the configuration, as data.
std::map<std::string, KeysOfTable> Keys(Config& config) {
  auto& c = config;
  std::map<std::string, KeysOfTable> keys = {
      {"",
       {{"listen", ShortPath(&c.listen, 100)},
        {"run_dir", AddressPath(&c.run_dir, 24)},
        {"log_level", OneOf(&c.log_level, {"debug", "info", "warn", "error"})}}},
      {"containerd",
       {{"address", ShortPath(&c.containerd.address, 100)},
        {"orphan_after_seconds", Time(&c.containerd.orphan_after, 0, 86400)}}},
      {"guest",
       {{"kernel", Path(&c.guest.kernel)},
        {"initrd", Path(&c.guest.initrd)},
        {"image", Path(&c.guest.image)},
        {"extra_cmdline", Text(&c.guest.extra_cmdline)},
        {"log_level", OneOf(&c.guest.log_level, {"debug", "info", "warn"})},
        {"memory_reserve_mib", Integer(&c.guest.memory_reserve_mib, 8, 4096)},
        {"heartbeat_seconds", Time(&c.guest.heartbeat, 0, 3600)},
        {"unkillable_after_seconds", Time(&c.guest.unkillable_after, 0, 86400)}}},
      {"vm",
       {{"vmm", OneOf(&c.vm.vmm, {"auto", "qemu"})},
        {"accel", OneOf(&c.vm.accel, {"auto", "kvm", "tcg"})},
        {"transport", OneOf(&c.vm.transport, {"auto", "vsock", "mux"})},
        {"file_share", OneOf(&c.vm.file_share, {"virtiofs", "9p"})},
        {"qemu_path", Path(&c.vm.qemu_path)},
        {"virtiofsd_path", Path(&c.vm.virtiofsd_path)},
        {"vmm_9p_path", Path(&c.vm.vmm_9p_path)},
        {"supervisor_path", Path(&c.vm.supervisor_path)},
        {"start_timeout_seconds", Time(&c.vm.start_timeout, 1, 3600)},
        {"stop_timeout_ms", Time(&c.vm.stop_timeout, 0, 60000)},
        {"uid_base", Integer(&c.vm.uid_base, 1000, std::numeric_limits<int32_t>::max())},
        {"uid_count", Integer(&c.vm.uid_count, 1, 1 << 24)},
        {"console_ring_kib", Integer(&c.vm.console_ring_kib, 4, 16384)}}},
      {"metrics", {{"address", ListenAddress(&c.metrics.address)}}},
      {"debug", {{"failpoints", TextList(&c.debug.failpoints)}}},
  };
  keys.at("vm").merge(SizingKeys(c.vm.size));
  return keys;
}

absl::Status At(const std::string& file, const toml::source_region& where, absl::string_view key,
                absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(file, ":", where.begin.line, ": ", key, ": ", what));
}

absl::Status ReadTable(const toml::table& table, const std::string& prefix,
                       const std::map<std::string, KeysOfTable>& keys, const std::string& file) {
  const auto& known = keys.at(prefix);
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    const std::string full = prefix.empty() ? name : absl::StrCat(prefix, ".", name);
    if (prefix.empty() && name == kHandlers) continue;
    if (prefix.empty() && keys.count(name) != 0) {
      if (!node.is_table()) return At(file, node.source(), full, "must be a table");
      MAGNETAR_RETURN_IF_ERROR(ReadTable(*node.as_table(), name, keys, file));
      continue;
    }
    const auto setter = known.find(name);
    if (setter == known.end()) return At(file, key.source(), full, "unknown key");
    if (absl::Status status = setter->second(node); !status.ok()) {
      return At(file, node.source(), full, status.message());
    }
  }
  return absl::OkStatus();
}

// Tables of any name, for which `config.vm` holds where they say nothing.
absl::Status ReadHandlers(const toml::table& root, Config& config, const std::string& file) {
  const toml::node* node = root.get(kHandlers);
  if (node == nullptr) return absl::OkStatus();
  if (!node->is_table()) return At(file, node->source(), kHandlers, "must be a table");
  for (const auto& [key, handler] : *node->as_table()) {
    const std::string name(key.str());
    const std::string full = absl::StrCat(kHandlers, ".", name);
    if (!handler.is_table()) return At(file, handler.source(), full, "must be a table");
    Config::Sizing& sizing = config.handlers[name] = config.vm.size;
    MAGNETAR_RETURN_IF_ERROR(
        ReadTable(*handler.as_table(), full, {{full, SizingKeys(sizing)}}, file));
  }
  return absl::OkStatus();
}

}  // namespace

const Config::Sizing& Config::SizingOf(const std::string& handler) const {
  const auto it = handlers.find(handler);
  return it == handlers.end() ? vm.size : it->second;
}

absl::StatusOr<Config> ParseConfig(std::string_view toml, const std::string& file) {
  const toml::parse_result parsed = toml::parse(toml, std::string_view(file));
  if (!parsed) {
    return absl::InvalidArgumentError(absl::StrCat(file, ":", parsed.error().source().begin.line,
                                                   ": ",
                                                   std::string(parsed.error().description())));
  }
  Config config;
  MAGNETAR_RETURN_IF_ERROR(ReadTable(parsed.table(), "", Keys(config), file));
  MAGNETAR_RETURN_IF_ERROR(ReadHandlers(parsed.table(), config, file));
  return config;
}

absl::Status SetConfigText(Config* config, const std::string& key, const std::string& value) {
  const auto keys = Keys(*config);
  return keys.at("").at(key)(toml::value<std::string>(value));
}

absl::StatusOr<Config> LoadConfig(const std::string& file) {
  absl::StatusOr<std::string> text = ReadFile(file);
  if (!text.ok()) return text.status();
  return ParseConfig(*text, file);
}

}  // namespace magnetar::daemon
