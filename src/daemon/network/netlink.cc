#include "src/daemon/network/netlink.h"

#include <linux/netlink.h>
#include <netlink/cache.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace magnetar::daemon {

void NlSocketFree::operator()(nl_sock* socket) const { ::nl_socket_free(socket); }
void NlCacheFree::operator()(nl_cache* cache) const { ::nl_cache_free(cache); }

absl::StatusOr<NlSocket> OpenRouteSocket() {
  NlSocket socket(::nl_socket_alloc());
  if (socket == nullptr) return absl::ResourceExhaustedError("no memory for a netlink socket");
  if (const int error = ::nl_connect(socket.get(), NETLINK_ROUTE); error < 0) {
    return NlStatus(error, "open netlink socket");
  }
  return socket;
}

absl::Status NlStatus(int error, absl::string_view context) {
  if (error >= 0) return absl::OkStatus();
  absl::StatusCode code = absl::StatusCode::kInternal;
  switch (std::abs(error)) {
    case NLE_EXIST:
      code = absl::StatusCode::kAlreadyExists;
      break;
    case NLE_OBJ_NOTFOUND:
    case NLE_NODEV:
    case NLE_NOADDR:
      code = absl::StatusCode::kNotFound;
      break;
    case NLE_PERM:
    case NLE_NOACCESS:
      code = absl::StatusCode::kPermissionDenied;
      break;
    case NLE_NOMEM:
      code = absl::StatusCode::kResourceExhausted;
      break;
    case NLE_OPNOTSUPP:
    case NLE_PROTO_MISMATCH:
    case NLE_BUSY:
      code = absl::StatusCode::kFailedPrecondition;
      break;
    default:
      break;
  }
  return absl::Status(code, absl::StrCat(context, ": ", ::nl_geterror(error)));
}

}  // namespace magnetar::daemon
