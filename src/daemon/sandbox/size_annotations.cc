#include "src/daemon/sandbox/size_annotations.h"

#include <unistd.h>

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace magnetar::daemon {
namespace {

constexpr absl::string_view kPrefix = "io.magnetar.vm.";

absl::Status Invalid(absl::string_view annotation, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("annotations: ", annotation, ": ", what));
}

absl::StatusOr<uint64_t> NumberBetween(absl::string_view annotation, absl::string_view text,
                                       uint64_t least, uint64_t most) {
  uint64_t value = 0;
  const bool digits =
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return absl::ascii_isdigit(c); });
  if (!digits || !absl::SimpleAtoi(text, &value) || value < least || value > most) {
    return Invalid(annotation, absl::StrCat("\"", absl::CHexEscape(text.substr(0, 64)),
                                            "\" is no number between ", least, " and ", most));
  }
  return value;
}

}  // namespace

absl::StatusOr<MachineSize> AskedSize(const runtime::v1::PodSandboxConfig& pod,
                                      const Config::Sizing& sizing, uint64_t host_memory_bytes) {
  MachineSize asked{.vcpus = 0, .memory_bytes = 0};
  for (const auto& [annotation, text] : pod.annotations()) {
    absl::string_view key = annotation;
    if (!absl::ConsumePrefix(&key, kPrefix)) continue;
    const bool vcpus = key == "vcpus";
    if (!vcpus && key != "memory_mib") {
      return Invalid(absl::CHexEscape(annotation.substr(0, 128)), "is not known");
    }
    if (std::find(sizing.annotations.begin(), sizing.annotations.end(), key) ==
        sizing.annotations.end()) {
      return absl::PermissionDeniedError(absl::StrCat(
          "annotations: ", annotation, ": the daemon's configuration does not allow it (",
          "vm.annotations, or that of the handler)"));
    }
    uint64_t least = 1;
    uint64_t most = std::max(sizing.max_vcpus, sizing.vcpus);
    if (!vcpus) {
      least = kLeastMemoryMib;
      most = std::max(
          sizing.max_memory_mib != 0 ? sizing.max_memory_mib : host_memory_bytes / kMebibyte,
          sizing.memory_mib);
    }
    const absl::StatusOr<uint64_t> value = NumberBetween(annotation, text, least, most);
    if (!value.ok()) return value.status();
    if (vcpus) {
      asked.vcpus = static_cast<uint32_t>(*value);
    } else {
      // Machines come in steps of two.
      asked.memory_bytes = (*value + 1) / 2 * 2 * kMebibyte;
    }
  }
  return asked;
}

uint64_t HostMemory() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace magnetar::daemon
