#pragma once

#include "absl/status/status.h"
#include "guest-agent/network/netlink.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

// Adds and replaces the routes of `network`, and removes those that an earlier
// call made and this one does not name. The kernel's own stay.
absl::Status SyncRoutes(nl_sock* socket, const agent::v1::Network& network);

// Adds and replaces the permanent neighbours of `network`.
absl::Status SyncNeighbours(nl_sock* socket, const agent::v1::Network& network);

}  // namespace magnetar::guest
