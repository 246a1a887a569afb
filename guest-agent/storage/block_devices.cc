#include "guest-agent/storage/block_devices.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/storage/disks.h"
#include "magnetar/guest_spec.h"
#include "magnetar/spec_json.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

using agent::v1::Storage;

absl::Status AddDisk(Json& linux_section, const Storage& storage, dev_t number) {
  const absl::StatusOr<Json*> devices = FindArray(linux_section, "linux", "devices");
  if (!devices.ok()) return devices.status();
  if (*devices == nullptr || storage.device_index() >= (*devices)->size() ||
      !(**devices)[storage.device_index()].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("spec: no linux.devices[", storage.device_index(), "]"));
  }
  Json& device = (**devices)[storage.device_index()];
  device["major"] = ::major(number);
  device["minor"] = ::minor(number);
  if (!linux_section.contains("resources")) linux_section["resources"] = Json::object();
  const absl::StatusOr<Json*> resources = FindObject(linux_section, "linux", "resources");
  if (!resources.ok()) return resources.status();
  const absl::StatusOr<Json*> rules = FindArray(**resources, "linux.resources", "devices");
  if (!rules.ok()) return rules.status();
  if (*rules == nullptr) (**resources)["devices"] = Json::array();
  (**resources)["devices"].push_back({{"allow", true},
                                      {"type", "b"},
                                      {"major", ::major(number)},
                                      {"minor", ::minor(number)},
                                      {"access", storage.device_access()}});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<dev_t> DiskNumber(const std::string& serial) {
  LoadModulesFor("scsi");
  const absl::StatusOr<std::string> disk = WaitForDisk(serial, kDiskTimeout);
  if (!disk.ok()) return disk.status();
  struct stat st = {};
  if (::stat(disk->c_str(), &st) != 0) return ErrnoStatus(errno, *disk);
  return st.st_rdev;
}

absl::StatusOr<std::string> SpecWithDisks(
    const agent::v1::PreparedContainer& prepared,
    const std::function<absl::StatusOr<dev_t>(const std::string& serial)>& find) {
  const auto is_device = [](const Storage& storage) {
    return storage.kind() == Storage::BLOCK_DEVICE;
  };
  if (std::none_of(prepared.storages().begin(), prepared.storages().end(), is_device)) {
    return prepared.spec();
  }
  absl::StatusOr<Json> spec = ParseSpecJson(prepared.spec());
  if (!spec.ok()) return spec.status();
  const absl::StatusOr<Json*> linux_section = FindObject(*spec, "", "linux");
  if (!linux_section.ok()) return linux_section.status();
  if (*linux_section == nullptr) return absl::InvalidArgumentError("spec: no linux section");
  for (const Storage& storage : prepared.storages()) {
    if (!is_device(storage)) continue;
    const std::string name = absl::StrCat("linux.devices[", storage.device_index(), "]");
    const absl::StatusOr<dev_t> number = find(storage.serial());
    if (!number.ok()) return Annotate(number.status(), name);
    MAGNETAR_RETURN_IF_ERROR(AddDisk(**linux_section, storage, *number));
  }
  return SpecText(*spec);
}

}  // namespace magnetar::guest
