#include "src/daemon/network/tap.h"

#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/network/netlink.h"

namespace magnetar::daemon {
namespace {

using Link = std::unique_ptr<rtnl_link, NlFree<rtnl_link_put>>;

absl::StatusOr<Link> LinkByName(nl_sock* socket, const std::string& name) {
  rtnl_link* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(NlStatus(::rtnl_link_get_kernel(socket, 0, name.c_str(), &raw),
                                    absl::StrCat("look up interface ", name)));
  return Link(raw);
}

// A tap that spoke IPv6 itself would send the guest reports and solicitations of a
// neighbour that does not exist.
absl::Status DisableIpv6(const std::string& name) {
  absl::Status status =
      WriteExisting(absl::StrCat("/proc/sys/net/ipv6/conf/", name, "/disable_ipv6"), "1");
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

// libnl knows nothing of taps.
int OnLink(nl_msg* message, void* data) {
  auto& owners = *static_cast<std::map<int, uint32_t>*>(data);
  nlmsghdr* header = ::nlmsg_hdr(message);
  const auto* link = static_cast<const ifinfomsg*>(::nlmsg_data(header));
  nlattr* info = ::nlmsg_find_attr(header, sizeof(*link), IFLA_LINKINFO);
  if (info == nullptr) return NL_OK;
  nlattr* kind =
      ::nla_find(static_cast<nlattr*>(::nla_data(info)), ::nla_len(info), IFLA_INFO_KIND);
  if (kind == nullptr || ::nla_strcmp(kind, "tun") != 0) return NL_OK;
  nlattr* tun = ::nla_find(static_cast<nlattr*>(::nla_data(info)), ::nla_len(info), IFLA_INFO_DATA);
  if (tun == nullptr) return NL_OK;
  nlattr* owner = ::nla_find(static_cast<nlattr*>(::nla_data(tun)), ::nla_len(tun), IFLA_TUN_OWNER);
  if (owner != nullptr) owners[link->ifi_index] = ::nla_get_u32(owner);
  return NL_OK;
}

absl::Status ChangeLink(nl_sock* socket, const std::string& name, uint32_t mtu, bool up) {
  auto link = LinkByName(socket, name);
  if (!link.ok()) return link.status();
  Link change(::rtnl_link_alloc());
  if (change == nullptr) return absl::ResourceExhaustedError("no memory for a link");
  ::rtnl_link_set_mtu(change.get(), mtu);
  if (up) ::rtnl_link_set_flags(change.get(), IFF_UP);
  return NlStatus(::rtnl_link_change(socket, link->get(), change.get(), 0),
                  absl::StrCat(up ? "bring up " : "set the MTU of ", name));
}

}  // namespace

absl::StatusOr<UniqueFd> CreateTap(nl_sock* socket, const std::string& name,
                                   const LinkState& interface, uint32_t uid) {
  if (auto existing = LinkByName(socket, name); existing.ok()) {
    return absl::AlreadyExistsError(absl::StrCat("interface ", name, " exists"));
  }
  UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return ErrnoStatus(errno, "open /dev/net/tun");
  ifreq request = {};
  std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) {
    return ErrnoStatus(errno, absl::StrCat("create tap ", name));
  }
  absl::Cleanup undo = [&fd] { ::ioctl(fd.get(), TUNSETPERSIST, 0); };
  // What every virtio-net guest takes; the VMM lowers it to what its guest has negotiated.
  if (::ioctl(fd.get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set offloads of tap ", name));
  }
  if (::ioctl(fd.get(), TUNSETOWNER, static_cast<unsigned long>(uid)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set owner of tap ", name));
  }
  // Persistent, so that the filters that name it never point to nothing while Detach is due.
  if (::ioctl(fd.get(), TUNSETPERSIST, 1) != 0) {
    return ErrnoStatus(errno, absl::StrCat("make tap ", name, " persistent"));
  }
  MAGNETAR_RETURN_IF_ERROR(Annotate(DisableIpv6(name), absl::StrCat("silence tap ", name)));
  MAGNETAR_RETURN_IF_ERROR(ChangeLink(socket, name, interface.mtu, /*up=*/true));
  std::move(undo).Cancel();
  return fd;
}

absl::Status SetLinkMtu(nl_sock* socket, const std::string& name, uint32_t mtu) {
  return ChangeLink(socket, name, mtu, /*up=*/false);
}

absl::StatusOr<std::map<int, uint32_t>> ReadTapOwners() {
  // A socket of its own: its callback sees nothing but this answer.
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  std::map<int, uint32_t> owners;
  ::nl_socket_modify_cb(socket->get(), NL_CB_VALID, NL_CB_CUSTOM, &OnLink, &owners);
  ifinfomsg all = {};
  int error = 0;
  // An interface that changed meanwhile makes the answer incomplete.
  do {
    owners.clear();
    error = ::nl_send_simple(socket->get(), RTM_GETLINK, NLM_F_DUMP, &all, sizeof(all));
    if (error >= 0) error = ::nl_recvmsgs_default(socket->get());
  } while (error == -NLE_DUMP_INTR);
  MAGNETAR_RETURN_IF_ERROR(NlStatus(error, "list owners of taps"));
  return owners;
}

absl::Status DeleteLink(nl_sock* socket, const std::string& name) {
  auto link = LinkByName(socket, name);
  if (absl::IsNotFound(link.status())) return absl::OkStatus();
  if (!link.ok()) return link.status();
  absl::Status status =
      NlStatus(::rtnl_link_delete(socket, link->get()), absl::StrCat("delete interface ", name));
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace magnetar::daemon
