#include "src/daemon/storage/spec_devices.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/storage/spec_mounts.h"

namespace magnetar::daemon {
namespace {

// Character devices that every Linux has and that mean nothing of a host's (Linux,
// Documentation/admin-guide/devices.txt).
constexpr struct {
  int64_t major;
  int64_t minor;
} kHarmlessDevices[] = {
    {1, 3},  // null
    {1, 5},  // zero
    {1, 7},  // full
    {1, 8},  // random
    {1, 9},  // urandom
    {5, 0},  // tty
    {5, 1},  // console
    {5, 2},  // ptmx
};

// Linux has 12 bits for a major and 20 for a minor number.
constexpr int64_t kMaxMajor = 4095;
constexpr int64_t kMaxMinor = (1 << 20) - 1;

struct Numbers {
  int64_t major = 0;
  int64_t minor = 0;
};

std::optional<int64_t> FindNumber(const Json& object, const char* key, int64_t most) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer()) return std::nullopt;
  const int64_t value = it->get<int64_t>();
  return value >= 0 && value <= most ? std::optional(value) : std::nullopt;
}

std::optional<Numbers> FindNumbers(const Json& object) {
  const std::optional<int64_t> major = FindNumber(object, "major", kMaxMajor);
  const std::optional<int64_t> minor = FindNumber(object, "minor", kMaxMinor);
  if (!major.has_value() || !minor.has_value()) return std::nullopt;
  return Numbers{*major, *minor};
}

bool IsHarmless(const std::string& type, const Json& device) {
  if (type == "p") return true;  // a FIFO, made in the guest
  const std::optional<Numbers> numbers = FindNumbers(device);
  if ((type != "c" && type != "u") || !numbers.has_value()) return false;
  return std::any_of(std::begin(kHarmlessDevices), std::end(kHarmlessDevices),
                     [&numbers](const auto& known) {
                       return known.major == numbers->major && known.minor == numbers->minor;
                     });
}

// What CRI's configuration of the container says of the device at `path`, if it names it.
const RequestedDevice* FindRequest(const SpecRequest& request, const std::string& path) {
  const auto asked = std::find_if(request.devices.begin(), request.devices.end(),
                                  [place = CleanPath(path)](const RequestedDevice& wanted) {
                                    return !wanted.container_path.empty() &&
                                           CleanPath(wanted.container_path) == place;
                                  });
  return asked == request.devices.end() ? nullptr : &*asked;
}

// A device that nobody asked for comes from containerd, which gives a privileged container every
// one that its host has, unless it is told not to.
absl::Status Refuse(const std::string& device, const char* why, const RequestedDevice* asked) {
  const char* advice = asked != nullptr ? ""
                                        : "; for privileged containers the handler needs "
                                          "privileged_without_host_devices = true";
  return absl::FailedPreconditionError(absl::StrCat(device, ": ", why, advice));
}

// `name` is for messages; `asked` may be null.
absl::Status TakeBlockDevice(Json& device, size_t index, const std::string& name,
                             const RequestedDevice* asked, RewrittenSpec& result) {
  const std::optional<Numbers> numbers = FindNumbers(device);
  if (!numbers.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": no numbers of a device"));
  }
  if (asked == nullptr) {
    return Refuse(name,
                  "a block device of the host is given to a VM only if CRI's configuration of "
                  "the container names it",
                  asked);
  }
  const std::string& access = asked->permissions;
  if (access.empty() || access.find_first_not_of("rwm") != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": permissions \"", absl::CHexEscape(access), "\" are not of r, w and m"));
  }
  BlockDevice taken;
  taken.index = index;
  taken.name = name;
  taken.host_path = asked->host_path;
  taken.number =
      ::makedev(static_cast<unsigned>(numbers->major), static_cast<unsigned>(numbers->minor));
  taken.access = access;
  result.devices.push_back(std::move(taken));
  // The guest's own are not known yet.
  device["major"] = 0;
  device["minor"] = 0;
  return absl::OkStatus();
}

// Rules that name a block device by its number: in a guest that is another device.
absl::Status DropBlockRules(Json& linux_section, RewrittenSpec& result) {
  absl::StatusOr<Json*> resources = FindObject(linux_section, "linux", "resources");
  if (!resources.ok()) return resources.status();
  if (*resources == nullptr) return absl::OkStatus();
  absl::StatusOr<Json*> rules = FindArray(**resources, "linux.resources", "devices");
  if (!rules.ok()) return rules.status();
  if (*rules == nullptr) return absl::OkStatus();
  bool dropped = false;
  Json kept = Json::array();
  for (Json& rule : **rules) {
    if (!rule.is_object()) {
      return absl::InvalidArgumentError("spec: linux.resources.devices is no array of objects");
    }
    const bool names_one = rule.contains("type") && rule["type"] == "b" && rule.contains("major") &&
                           rule["major"] != -1 && !rule["major"].is_null();
    if (!names_one) {
      kept.push_back(std::move(rule));
      continue;
    }
    const std::optional<Numbers> numbers = FindNumbers(rule);
    const bool taken =
        numbers.has_value() &&
        std::any_of(result.devices.begin(), result.devices.end(), [&](const BlockDevice& device) {
          return device.number == ::makedev(static_cast<unsigned>(numbers->major),
                                            static_cast<unsigned>(numbers->minor));
        });
    dropped = dropped || !taken;
  }
  **rules = std::move(kept);
  if (dropped) result.dropped.push_back("linux.resources.devices: rules for block devices");
  return absl::OkStatus();
}

}  // namespace

absl::Status RewriteDevices(Json& linux_section, const SpecRequest& request,
                            RewrittenSpec& result) {
  absl::StatusOr<Json*> devices = FindArray(linux_section, "linux", "devices");
  if (!devices.ok()) return devices.status();
  for (size_t i = 0; *devices != nullptr && i < (*devices)->size(); ++i) {
    Json& device = (**devices)[i];
    const std::string where = absl::StrCat("linux.devices[", i, "]");
    if (!device.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat("spec: ", where, " is no object"));
    }
    absl::StatusOr<std::string> path = FindString(device, where, "path");
    if (!path.ok()) return path.status();
    absl::StatusOr<std::string> type = FindString(device, where, "type");
    if (!type.ok()) return type.status();
    const std::string name = absl::StrCat(where, " ", absl::CHexEscape(*path));
    const RequestedDevice* asked = FindRequest(request, *path);
    if (*type == "b") {
      MAGNETAR_RETURN_IF_ERROR(TakeBlockDevice(device, i, name, asked, result));
    } else if (!IsHarmless(*type, device)) {
      return Refuse(name, "of the host's devices only block devices can be given to a VM, as disks",
                    asked);
    }
  }
  return DropBlockRules(linux_section, result);
}

}  // namespace magnetar::daemon
