#include "guest-agent/network/network.h"

#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/network/netlink.h"
#include "guest-agent/network/routes.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

NlLink Change() { return NlLink(rtnl_link_alloc()); }

absl::Status ApplyLink(nl_sock* socket, int index, rtnl_link* change, const std::string& what) {
  const NlLink original(rtnl_link_alloc());
  rtnl_link_set_ifindex(original.get(), index);
  return NlStatus(rtnl_link_change(socket, original.get(), change, 0), what);
}

absl::Status SetUp(nl_sock* socket, int index, bool up, const std::string& name) {
  const NlLink change = Change();
  if (up) {
    rtnl_link_set_flags(change.get(), IFF_UP);
  } else {
    rtnl_link_unset_flags(change.get(), IFF_UP);
  }
  return ApplyLink(socket, index, change.get(), absl::StrCat("set ", name, up ? " up" : " down"));
}

absl::Status Rename(nl_sock* socket, int index, const std::string& name) {
  // The kernel renames only what is down.
  MAGNETAR_RETURN_IF_ERROR(SetUp(socket, index, false, name));
  const NlLink change = Change();
  rtnl_link_set_name(change.get(), name.c_str());
  return ApplyLink(socket, index, change.get(), absl::StrCat("rename an interface to ", name));
}

struct Nic {
  int index = 0;
  std::string name;
};

// Interfaces by MAC address. The loopback has none of its own.
absl::StatusOr<std::map<std::string, Nic>> FindNics(nl_sock* socket) {
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(
      NlStatus(rtnl_link_alloc_cache(socket, AF_UNSPEC, &raw), "list interfaces"));
  const NlCache cache(raw);
  std::map<std::string, Nic> nics;
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* link = reinterpret_cast<rtnl_link*>(object);
    if ((rtnl_link_get_flags(link) & IFF_LOOPBACK) != 0) continue;
    const std::string mac = absl::AsciiStrToLower(ToString(rtnl_link_get_addr(link)));
    nics[mac] = {rtnl_link_get_ifindex(link), rtnl_link_get_name(link)};
  }
  return nics;
}

// Two steps, so that interfaces may swap names.
absl::Status RenameAll(nl_sock* socket, const std::vector<std::pair<Nic, std::string>>& wanted) {
  std::vector<std::pair<Nic, std::string>> pending;
  for (const auto& [nic, name] : wanted) {
    if (nic.name == name) continue;
    MAGNETAR_RETURN_IF_ERROR(Rename(socket, nic.index, absl::StrCat("renaming", nic.index)));
    pending.emplace_back(nic, name);
  }
  for (const auto& [nic, name] : pending) {
    MAGNETAR_RETURN_IF_ERROR(Rename(socket, nic.index, name));
  }
  return absl::OkStatus();
}

absl::Status AddAddress(nl_sock* socket, int index, const std::string& text) {
  auto local = ParseNlAddr(text, AF_UNSPEC);
  if (!local.ok()) return local.status();
  const NlAddress address(rtnl_addr_alloc());
  rtnl_addr_set_ifindex(address.get(), index);
  rtnl_addr_set_local(address.get(), local->get());
  if (nl_addr_get_family(local->get()) == AF_INET6) {
    rtnl_addr_set_flags(address.get(), IFA_F_NODAD);
  }
  const absl::Status status =
      NlStatus(rtnl_addr_add(socket, address.get(), 0), absl::StrCat("add address ", text));
  return absl::IsAlreadyExists(status) ? absl::OkStatus() : status;
}

absl::Status SyncAddresses(nl_sock* socket, int index, const agent::v1::Interface& interface) {
  std::set<std::string> wanted;
  for (const std::string& text : interface.addresses()) {
    auto parsed = ParseNlAddr(text, AF_UNSPEC);
    if (!parsed.ok()) return parsed.status();
    wanted.insert(ToString(parsed->get()));
  }
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(NlStatus(rtnl_addr_alloc_cache(socket, &raw), "list addresses"));
  const NlCache cache(raw);
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* address = reinterpret_cast<rtnl_addr*>(object);
    if (rtnl_addr_get_ifindex(address) != index) continue;
    const std::string text = ToString(rtnl_addr_get_local(address));
    if (wanted.contains(text)) continue;
    MAGNETAR_RETURN_IF_ERROR(
        NlStatus(rtnl_addr_delete(socket, address, 0), absl::StrCat("remove address ", text)));
  }
  for (const std::string& text : interface.addresses()) {
    MAGNETAR_RETURN_IF_ERROR(AddAddress(socket, index, text));
  }
  return absl::OkStatus();
}

// Before an interface is up: a router may answer first. The pod's namespace has the link-local
// address too, as it wants it, and has made sure that nobody else uses it: so the kernel derives
// none (addr_gen_mode 1) and checks none. Without any IPv6 address there, IPv6 is off here.
absl::Status PrepareIpv6(const agent::v1::Interface& interface) {
  const bool has_ipv6 =
      std::any_of(interface.addresses().begin(), interface.addresses().end(),
                  [](const std::string& a) { return a.find(':') != std::string::npos; });
  const std::pair<const char*, const char*> settings[] = {{"accept_ra", "0"},
                                                          {"accept_dad", "0"},
                                                          {"addr_gen_mode", "1"},
                                                          {"disable_ipv6", has_ipv6 ? "0" : "1"}};
  for (const auto& [name, value] : settings) {
    const absl::Status written =
        WriteExisting(absl::StrCat("/proc/sys/net/ipv6/conf/", interface.name(), "/", name), value);
    // A kernel without IPv6 has no such file.
    if (!written.ok() && !absl::IsNotFound(written)) return written;
  }
  return absl::OkStatus();
}

absl::Status SetUpInterface(nl_sock* socket, int index, const agent::v1::Interface& interface) {
  if (interface.mtu() != 0) {
    const NlLink change = Change();
    rtnl_link_set_mtu(change.get(), interface.mtu());
    MAGNETAR_RETURN_IF_ERROR(ApplyLink(socket, index, change.get(), "set MTU"));
  }
  MAGNETAR_RETURN_IF_ERROR(PrepareIpv6(interface));
  MAGNETAR_RETURN_IF_ERROR(SetUp(socket, index, true, interface.name()));
  return SyncAddresses(socket, index, interface);
}

}  // namespace

absl::StatusOr<std::string> NormalizeMac(absl::string_view mac) {
  const std::vector<absl::string_view> parts = absl::StrSplit(mac, ':');
  const bool valid =
      parts.size() == 6 && std::all_of(parts.begin(), parts.end(), [](auto part) {
        return part.size() == 2 && absl::ascii_isxdigit(part[0]) && absl::ascii_isxdigit(part[1]);
      });
  if (!valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(mac.substr(0, 64)), "\" is no MAC address"));
  }
  return absl::AsciiStrToLower(mac);
}

absl::Status CheckInterfaceName(absl::string_view name) {
  const bool valid =
      !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
      std::none_of(name.begin(), name.end(), [](char c) {
        return c == '/' || c == ':' || absl::ascii_isspace(c) || !absl::ascii_isprint(c);
      });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::CHexEscape(name.substr(0, 64)), "\" is no interface name"));
}

absl::Status ConfigureNetwork(const agent::v1::Network& network) {
  auto socket = ConnectNetlink();
  if (!socket.ok()) return socket.status();
  nl_sock* const sock = socket->get();
  const auto nics = FindNics(sock);
  if (!nics.ok()) return nics.status();
  std::vector<std::pair<Nic, std::string>> names;
  for (const agent::v1::Interface& interface : network.interfaces()) {
    MAGNETAR_RETURN_IF_ERROR(CheckInterfaceName(interface.name()));
    const auto mac = NormalizeMac(interface.mac());
    if (!mac.ok()) return mac.status();
    const auto nic = nics->find(*mac);
    if (nic == nics->end()) {
      return absl::NotFoundError(
          absl::StrCat("interface ", interface.name(), ": no NIC with MAC ", *mac));
    }
    names.emplace_back(nic->second, interface.name());
  }
  MAGNETAR_RETURN_IF_ERROR(RenameAll(sock, names));
  for (int i = 0; i < network.interfaces_size(); ++i) {
    const agent::v1::Interface& interface = network.interfaces(i);
    MAGNETAR_RETURN_IF_ERROR(
        Annotate(SetUpInterface(sock, names[static_cast<size_t>(i)].first.index, interface),
                 absl::StrCat("interface ", interface.name())));
  }
  MAGNETAR_RETURN_IF_ERROR(SetUp(sock, static_cast<int>(::if_nametoindex("lo")), true, "lo"));
  MAGNETAR_RETURN_IF_ERROR(SyncRoutes(sock, network));
  return SyncNeighbours(sock, network);
}

}  // namespace magnetar::guest
