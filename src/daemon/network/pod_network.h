#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/agent.pb.h"
#include "magnetar/child_process.h"
#include "magnetar/unique_fd.h"

namespace magnetar::daemon {

// One tap that stands for an interface of the pod.
struct PodTap {
  int index = 0;          // the interface's
  std::string interface;  // "eth0"
  std::string tap;        // "tap2_mgt": its name in the pod's netns; of a macvtap its own
  std::string mac;
  uint32_t mtu = 1500;
  UniqueFd fd;  // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, ready for the VMM
};

// A pod's netns, tied to a VM.
struct PodNetwork {
  UniqueFd netns;
  std::vector<PodTap> taps;
  agent::v1::Network guest;  // what the guest shall configure
  // Listens in the netns, dual-stack; connections to any loopback port are
  // redirected to it. An accepted one tells the port it was meant for by
  // SO_ORIGINAL_DST: of SOL_IP if its peer is v4-mapped, else of SOL_IPV6.
  UniqueFd forward_listener;
  // Tables of nftables that somebody else has in the netns, "ip filter": frames
  // cross over between interface and tap before any rule of theirs sees them.
  std::vector<std::string> foreign_tables;
};

// An interface that belongs into the pod's VM.
struct PodInterface {
  int index = 0;
  std::string name;
  std::string mac;
  uint32_t mtu = 0;
  bool tied = false;  // all that ties it to a VM is in place
};

// One that does not, and why.
struct RefusedInterface {
  int index = 0;
  std::string name;
  absl::Status status;
};

// A pod's netns while its VM runs.
struct PodState {
  std::vector<PodInterface> interfaces;  // at most kMaxInterfaces, in order of their index
  std::vector<RefusedInterface> refused;
  agent::v1::Network guest;  // of all `interfaces`
  // Interfaces for which a tap of this VM's is there, whether or not they still are; with its MTU.
  std::map<int, uint32_t> taps;
};

struct PodWatch {
  UniqueFd netns;
  // A netlink socket that does not block; ReadPodNews (news.h) says what matters of what it tells.
  UniqueFd news;
};

// Ties the interfaces that CNI left in a netns to taps: a tap beside each
// interface and tc ingress filters (u32, mirred) that cross them over. Addresses
// stay on the host's side. Everything made is named by a fixed rule, so that
// Detach needs no record. All calls block and enter the netns on throw-away threads;
// they may overlap for different namespaces.
//
// Errors: INVALID_ARGUMENT if the path is no netns, or the host's own; FAILED_PRECONDITION
// for an interface that has foreign qdiscs, or is of a kind that cannot be tied, by name, and
// for a netns that is tied to a living VM already (by its taps: not by macvtaps), or has more
// interfaces than a VM takes.
class NetworkManager {
 public:
  virtual ~NetworkManager() = default;
  // Leaves nothing behind when it fails. `uid` may open the taps again.
  virtual absl::StatusOr<PodNetwork> Attach(const std::string& netns_path, uint32_t uid) = 0;
  // Undoes Attach for the same `uid`, whole or half done, and nothing that another uid's VM has
  // there; a netns that is gone, or a path that never was one, is fine.
  virtual absl::Status Detach(const std::string& netns_path, uint32_t uid) = 0;

  // For a pod that runs. The netns is the one in which its VMM is: the path may be gone, or lead to
  // another one. From here on it is given by its descriptor. NOT_FOUND: the process has ended.
  virtual absl::StatusOr<PodWatch> Watch(const ProcessIdentity& vmm) = 0;
  // Interfaces in `tied` stay as long as they exist, and come before others.
  virtual absl::StatusOr<PodState> Read(int netns, uint32_t uid, const std::set<int>& tied) = 0;
  // Ties one more interface. NOT_FOUND: it is gone. Leaves nothing behind when it fails.
  virtual absl::StatusOr<PodTap> Tie(int netns, const PodInterface& interface, uint32_t uid) = 0;
  // Undoes Tie, whole or half done. The interface may be gone.
  virtual absl::Status Untie(int netns, int index, uint32_t uid) = 0;
  // Gives its tap the interface's MTU.
  virtual absl::Status SetMtu(int netns, const PodInterface& interface) = 0;
};

// The kernel's; needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
std::unique_ptr<NetworkManager> CreateNetworkManager();

}  // namespace magnetar::daemon
