#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

// Brings the interfaces of this network namespace to the state that `network`
// describes; repeating it changes nothing. Interfaces are found by their MAC
// address. IPv6 addresses, link-local ones too, are those given and no others; they are used at
// once (no duplicate address detection), and router advertisements are ignored. An interface
// without any has IPv6 switched off. Blocks; needs CAP_NET_ADMIN.
//
// Errors: NOT_FOUND (no NIC with that MAC), INVALID_ARGUMENT (an address that is none), or what
// the kernel said, each naming the object.
absl::Status ConfigureNetwork(const agent::v1::Network& network);

// "02:00:00:00:00:01" in lower case; INVALID_ARGUMENT if it is no MAC address.
absl::StatusOr<std::string> NormalizeMac(absl::string_view mac);

// Names become paths in /proc/sys and are limited by IFNAMSIZ. INVALID_ARGUMENT.
absl::Status CheckInterfaceName(absl::string_view name);

}  // namespace magnetar::guest
