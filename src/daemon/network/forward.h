#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "magnetar/unique_fd.h"

// Port forwarding: containerd dials localhost:<port> in the pod's netns on the
// host, where nothing listens, since the pod's programs are in the guest. A table "magnetar" of
// nftables sends every TCP connection to loopback to one listener instead. All
// functions act on the calling thread's netns.
namespace magnetar::daemon {

// The rules for a listener on `port`, as nft reads them. Connections to the
// listener that do not come over loopback are dropped.
std::string ForwardRules(uint16_t port);

// Listens on a free port, dual-stack where the kernel has IPv6, and installs the rules.
absl::StatusOr<UniqueFd> StartForwarding();

// Removes the rules; absent ones are fine.
absl::Status RemoveForwarding();

// Tables of nftables that somebody else has made, "ip filter"; none if the kernel does not tell.
std::vector<std::string> ForeignTables();

// The same from what `nft list tables` prints.
std::vector<std::string> ParseForeignTables(absl::string_view tables);

}  // namespace magnetar::daemon
