#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/network/snapshot.h"

struct nl_sock;

namespace magnetar::daemon {

// Makes a persistent tap in the calling thread's netns, with the interface's MTU, up, silent (no
// IPv6 of its own) and openable by `uid`. ALREADY_EXISTS if there is one by that name.
absl::StatusOr<UniqueFd> CreateTap(nl_sock* socket, const std::string& name,
                                   const LinkState& interface, uint32_t uid);

// Changes the MTU of an interface, by name.
absl::Status SetLinkMtu(nl_sock* socket, const std::string& name, uint32_t mtu);

// Owners' uids, by index, of the taps in the calling thread's netns; those without an owner are
// left out.
absl::StatusOr<std::map<int, uint32_t>> ReadTapOwners();

// Removes an interface by name; an absent one is fine.
absl::Status DeleteLink(nl_sock* socket, const std::string& name);

}  // namespace magnetar::daemon
