#include "src/daemon/network/tie.h"

#include <net/if.h>

#include <algorithm>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "src/daemon/network/macvtap.h"
#include "src/daemon/network/netlink.h"
#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/tap.h"
#include "src/daemon/network/traffic.h"

namespace magnetar::daemon {
namespace {

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
  auto fd = CreateTap(socket, tap.tap, interface, uid);
  if (!fd.ok()) return fd.status();
  tap.fd = *std::move(fd);
  absl::Cleanup undo = [&] { UntieInterface(socket, interface.index, uid).IgnoreError(); };
  const int tap_index = static_cast<int>(::if_nametoindex(tap.tap.c_str()));
  MAGNETAR_RETURN_IF_ERROR(RedirectIngress(socket, tap_index, interface.index, tap.tap));
  MAGNETAR_RETURN_IF_ERROR(RedirectIngress(socket, interface.index, tap_index, interface.name));
  std::move(undo).Cancel();
  return tap;
}

absl::StatusOr<Untied> UntieAll(nl_sock* socket, std::optional<uint32_t> uid) {
  return UntieSome(socket, uid, [](int) { return true; });
}

absl::Status UntieInterface(nl_sock* socket, int index, uint32_t uid) {
  return UntieSome(socket, uid, [index](int i) { return i == index; }).status();
}

}  // namespace magnetar::daemon
