#include "src/daemon/network/tie.h"

#include <net/if.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/network/macvtap.h"
#include "src/daemon/network/netlink.h"
#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/tap.h"
#include "src/daemon/network/traffic.h"

namespace magnetar::daemon {
namespace {

// Of a tap that somebody has deleted.
bool HasStaleIngress(const LinkState& link, const std::vector<LinkState>& links) {
  const bool ours = std::any_of(link.qdiscs.begin(), link.qdiscs.end(),
                                [](const QdiscState& qdisc) { return qdisc.ours; });
  return ours && !InterfaceOfTap(link).has_value() &&
         std::none_of(links.begin(), links.end(), [&link](const LinkState& other) {
           return InterfaceOfTap(other) == link.index;
         });
}

absl::StatusOr<Untied> UntieSome(nl_sock* socket, std::optional<uint32_t> uid,
                                 const std::function<bool(int)>& wanted) {
  auto links = ReadLinks(socket);
  if (!links.ok()) return links.status();
  auto owners = ReadTapOwners();
  if (!owners.ok()) return owners.status();
  Untied untied;
  absl::Status result;
  for (const LinkState& tap : *links) {
    const auto index = InterfaceOfTap(tap);
    if (!index.has_value() || !wanted(*index)) continue;
    const auto owner = owners->find(tap.index);
    if (uid.has_value() && owner != owners->end() && owner->second != *uid) {
      untied.shared = true;
      continue;
    }
    const auto interface = std::find_if(links->begin(), links->end(),
                                        [&](const LinkState& l) { return l.index == *index; });
    absl::Status status;
    if (interface != links->end()) status = RemoveIngress(socket, *index, interface->name);
    // It went away by itself meanwhile, and took its qdisc along.
    if (status.ok() || absl::IsNotFound(status)) status = DeleteLink(socket, tap.name);
    result.Update(status);
  }
  for (const LinkState& link : *links) {
    if (!wanted(link.index) || !HasStaleIngress(link, *links)) continue;
    result.Update(RemoveIngress(socket, link.index, link.name));
  }
  if (!result.ok()) return result;
  return untied;
}

}  // namespace

absl::StatusOr<PodTap> TieInterface(nl_sock* socket, const LinkState& interface, uint32_t uid) {
  PodTap tap{.index = interface.index,
             .interface = interface.name,
             .tap = TapName(interface.index),
             .mac = interface.mac,
             .mtu = interface.mtu,
             .fd = {}};
  if (interface.kind == kMacvtap) {
    auto fd = OpenMacvtap(interface);
    if (!fd.ok()) return fd.status();
    tap.tap = interface.name;
    tap.fd = *std::move(fd);
    return tap;
  }
  for (const QdiscState& qdisc : interface.qdiscs) {
    // CheckTieable has let it pass.
    if (!qdisc.ours) continue;
    MAGNETAR_RETURN_IF_ERROR(RemoveIngress(socket, interface.index, interface.name));
  }
  auto fd = CreateTap(socket, tap.tap, interface, uid);
  if (!fd.ok()) return fd.status();
  tap.fd = *std::move(fd);
  const int tap_index = static_cast<int>(::if_nametoindex(tap.tap.c_str()));
  absl::Status status = RedirectIngress(socket, tap_index, interface.index, tap.tap);
  if (status.ok()) status = RedirectIngress(socket, interface.index, tap_index, interface.name);
  if (status.ok()) return tap;
  // A qdisc that was there is somebody else's.
  const absl::Status undone = absl::IsAlreadyExists(status)
                                  ? DeleteLink(socket, tap.tap)
                                  : UntieInterface(socket, interface.index, uid);
  if (undone.ok()) return status;
  return Annotate(status, absl::StrCat("(and undoing failed: ", undone.message(), ")"));
}

absl::StatusOr<Untied> UntieAll(nl_sock* socket, std::optional<uint32_t> uid) {
  return UntieSome(socket, uid, [](int) { return true; });
}

absl::Status UntieInterface(nl_sock* socket, int index, uint32_t uid) {
  return UntieSome(socket, uid, [index](int i) { return i == index; }).status();
}

}  // namespace magnetar::daemon
