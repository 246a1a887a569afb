#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/network/snapshot.h"

struct nl_sock;

// Ties interfaces of the calling thread's netns to taps, and unties them. The tap is made
// before any qdisc and removed after all of them, so the taps tell which qdiscs are ours; where
// somebody has deleted one, its filter's priority does (traffic.h).
namespace magnetar::daemon {

// Leaves nothing behind when it fails. Of a macvtap the interface's own tap is opened instead.
absl::StatusOr<PodTap> TieInterface(nl_sock* socket, const LinkState& interface, uint32_t uid);

struct Untied {
  bool shared = false;  // taps of another uid's VM are still there
};

// All of them, or with `uid` only those of its VM, which may share the namespace with another's by
// somebody's mistake.
absl::StatusOr<Untied> UntieAll(nl_sock* socket, std::optional<uint32_t> uid);

// The one that stands for the interface with this index, be the interface there or not. A tap that
// is not there, or another uid's, is fine.
absl::Status UntieInterface(nl_sock* socket, int index, uint32_t uid);

}  // namespace magnetar::daemon
