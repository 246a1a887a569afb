#pragma once

#include <vector>

#include "absl/status/status.h"
#include "guest-agent/network/netlink.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

// Both go on after an error and return the first one.

// Adds and replaces the routes of `network`, and removes those that an earlier
// call made and this one does not name. The kernel's own stay.
absl::Status SyncRoutes(nl_sock* socket, const agent::v1::Network& network);

// Adds and replaces the permanent neighbours of `network`, and removes those of `before`, an
// earlier call's, that it does not name.
absl::Status SyncNeighbours(nl_sock* socket, const agent::v1::Network& network,
                            const std::vector<agent::v1::Neighbour>& before);

}  // namespace magnetar::guest
