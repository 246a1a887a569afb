#pragma once

#include <chrono>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "guest-agent/network/nics.h"
#include "magnetar/agent.pb.h"

namespace magnetar::guest {

// The interfaces of this network namespace, as the daemon wants them. It remembers what it has
// made: what a container has added besides is left alone. One thread at a time.
class GuestNetwork {
 public:
  // `nic_timeout`: how long a NIC may take to appear.
  explicit GuestNetwork(std::chrono::nanoseconds nic_timeout = std::chrono::seconds(10))
      : nic_timeout_(nic_timeout) {}

  // Brings them to the state that `network` describes; repeating it changes nothing. Interfaces are
  // found by their MAC address; one that is not there yet is waited for. IPv6 addresses, link-local
  // ones too, are those given and no others; they are used at once (no duplicate address
  // detection), and router advertisements are ignored. An interface without any has IPv6 switched
  // off. An interface that an earlier call has set up and this one does not name loses its
  // addresses and its name, and goes down. Blocks; needs CAP_NET_ADMIN.
  //
  // Goes on after an error and returns the first one: NOT_FOUND (no NIC with that MAC),
  // INVALID_ARGUMENT (an address that is none), or what the kernel said, each naming the object.
  absl::Status Configure(const agent::v1::Network& network);

 private:
  struct Applied {
    agent::v1::Interface interface;
    bool whole = false;  // everything of it was done
  };

  absl::Status Rename(nl_sock* socket, const std::vector<std::pair<Nic, std::string>>& wanted);
  absl::Status Park(nl_sock* socket, const std::vector<Nic>& nics, const std::set<int>& wanted);
  absl::Status Apply(nl_sock* socket, int index, const agent::v1::Interface& interface);

  const std::chrono::nanoseconds nic_timeout_;
  std::map<int, Applied> applied_;  // by index
  std::vector<agent::v1::Neighbour> neighbours_;
};

// "02:00:00:00:00:01" in lower case; INVALID_ARGUMENT if it is no MAC address.
absl::StatusOr<std::string> NormalizeMac(absl::string_view mac);

// Names become paths in /proc/sys and are limited by IFNAMSIZ. INVALID_ARGUMENT.
absl::Status CheckInterfaceName(absl::string_view name);

}  // namespace magnetar::guest
