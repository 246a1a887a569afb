#pragma once

#include <netlink/addr.h>
#include <netlink/cache.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/route.h>
#include <netlink/socket.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Owners for libnl's objects, and its errors as absl::Status.
namespace magnetar::guest {

template <auto Free>
struct NlDeleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};

using NlSocket = std::unique_ptr<nl_sock, NlDeleter<nl_socket_free>>;
using NlCache = std::unique_ptr<nl_cache, NlDeleter<nl_cache_free>>;
using NlAddr = std::unique_ptr<nl_addr, NlDeleter<nl_addr_put>>;
using NlLink = std::unique_ptr<rtnl_link, NlDeleter<rtnl_link_put>>;
using NlAddress = std::unique_ptr<rtnl_addr, NlDeleter<rtnl_addr_put>>;
using NlRoute = std::unique_ptr<rtnl_route, NlDeleter<rtnl_route_put>>;
using NlNeighbour = std::unique_ptr<rtnl_neigh, NlDeleter<rtnl_neigh_put>>;

// `result` of a libnl call: negative is an error.
absl::Status NlStatus(int result, absl::string_view what);

absl::StatusOr<NlSocket> ConnectNetlink();

// "10.0.0.2/24", "fd00::1", "02:00:00:00:00:01" (`family` AF_LLC). INVALID_ARGUMENT.
absl::StatusOr<NlAddr> ParseNlAddr(const std::string& text, int family);

std::string ToString(nl_addr* address);

}  // namespace magnetar::guest
