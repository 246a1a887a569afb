#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// One tap that stands for an interface of the pod.
struct PodTap {
  std::string interface;  // "eth0"
  std::string tap;        // "tap0_mgt": its name in the pod's netns
  std::string mac;
  uint32_t mtu = 1500;
  UniqueFd fd;  // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, ready for the VMM
};

// A pod's netns, tied to a VM.
struct PodNetwork {
  UniqueFd netns;
  std::vector<PodTap> taps;
  agent::v1::Network guest;  // what the guest shall configure
  // Listens on loopback in the netns; connections to any loopback port are
  // redirected to it and know their port by SO_ORIGINAL_DST.
  UniqueFd forward_listener;
};

// Ties the interfaces that CNI left in a netns to taps: a tap beside each
// interface and tc ingress filters (u32, mirred) that cross them over. Addresses
// stay on the host's side. Everything made is named by a fixed rule, so that
// Detach needs no record. All calls block and enter the netns on throw-away threads.
//
// Errors: INVALID_ARGUMENT if the path is no netns; FAILED_PRECONDITION for an
// interface that has foreign qdiscs or a kind that cannot be tied, by name.
class NetworkManager {
 public:
  virtual ~NetworkManager() = default;
  // Leaves nothing behind when it fails. `uid` may open the taps again.
  virtual absl::StatusOr<PodNetwork> Attach(const std::string& netns_path, uint32_t uid) = 0;
  // Undoes Attach, whole or half done; a netns that is gone is fine.
  virtual absl::Status Detach(const std::string& netns_path) = 0;
};

}  // namespace magnetar::daemon
