#include "guest-agent/network/netlink.h"

#include <linux/netlink.h>
#include <netlink/errno.h>

#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace magnetar::guest {

absl::Status NlStatus(int result, absl::string_view what) {
  if (result >= 0) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", nl_geterror(result));
  switch (std::abs(result)) {
    case NLE_EXIST:
      return absl::AlreadyExistsError(message);
    case NLE_OBJ_NOTFOUND:
    case NLE_NODEV:
    case NLE_NOADDR:
      return absl::NotFoundError(message);
    case NLE_INVAL:
      return absl::InvalidArgumentError(message);
    case NLE_PERM:
      return absl::PermissionDeniedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<NlSocket> ConnectNetlink() {
  NlSocket socket(nl_socket_alloc());
  if (socket == nullptr) return absl::ResourceExhaustedError("netlink socket");
  const absl::Status status = NlStatus(nl_connect(socket.get(), NETLINK_ROUTE), "netlink");
  if (!status.ok()) return status;
  return socket;
}

absl::StatusOr<NlAddr> ParseNlAddr(const std::string& text, int family) {
  nl_addr* address = nullptr;
  if (nl_addr_parse(text.c_str(), family, &address) < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(text), "\" is no address"));
  }
  return NlAddr(address);
}

std::string ToString(nl_addr* address) {
  char text[128];
  return address == nullptr ? "" : nl_addr2str(address, text, sizeof(text));
}

}  // namespace magnetar::guest
