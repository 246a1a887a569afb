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

absl::Status SetName(nl_sock* socket, int index, const std::string& name) {
  // The kernel renames only what is down.
  MAGNETAR_RETURN_IF_ERROR(SetUp(socket, index, false, name));
  const NlLink change = Change();
  rtnl_link_set_name(change.get(), name.c_str());
  return ApplyLink(socket, index, change.get(), absl::StrCat("rename an interface to ", name));
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

// As the kernel writes them.
std::set<std::string> AddressesOf(const agent::v1::Interface& interface) {
  std::set<std::string> addresses;
  for (const std::string& text : interface.addresses()) {
    auto parsed = ParseNlAddr(text, AF_UNSPEC);
    if (parsed.ok()) addresses.insert(ToString(parsed->get()));
  }
  return addresses;
}

// Without `before` all other addresses go, those that the kernel has made too.
absl::Status SyncAddresses(nl_sock* socket, int index, const agent::v1::Interface& interface,
                           const agent::v1::Interface* before) {
  const std::set<std::string> wanted = AddressesOf(interface);
  const std::set<std::string> ours =
      before == nullptr ? std::set<std::string>() : AddressesOf(*before);
  nl_cache* raw = nullptr;
  MAGNETAR_RETURN_IF_ERROR(NlStatus(rtnl_addr_alloc_cache(socket, &raw), "list addresses"));
  const NlCache cache(raw);
  absl::Status result;
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* address = reinterpret_cast<rtnl_addr*>(object);
    if (rtnl_addr_get_ifindex(address) != index) continue;
    const std::string text = ToString(rtnl_addr_get_local(address));
    if (wanted.contains(text) || (before != nullptr && !ours.contains(text))) continue;
    const absl::Status removed =
        NlStatus(rtnl_addr_delete(socket, address, 0), absl::StrCat("remove address ", text));
    // A first address of IPv4 takes those of its network with it.
    if (removed.code() != absl::StatusCode::kNotFound) result.Update(removed);
  }
  for (const std::string& text : interface.addresses()) {
    result.Update(AddAddress(socket, index, text));
  }
  return result;
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

absl::Status FlushAddresses(nl_sock* socket, int index) {
  return SyncAddresses(socket, index, agent::v1::Interface(), nullptr);
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

// Two steps, so that interfaces may swap names.
absl::Status GuestNetwork::Rename(nl_sock* socket,
                                  const std::vector<std::pair<Nic, std::string>>& wanted) {
  absl::Status result;
  std::vector<std::pair<Nic, std::string>> pending;
  for (const auto& [nic, name] : wanted) {
    if (nic.name == name) continue;
    // It goes down for this.
    if (const auto known = applied_.find(nic.index); known != applied_.end()) {
      known->second.whole = false;
    }
    const absl::Status freed = SetName(socket, nic.index, absl::StrCat("renaming", nic.index));
    result.Update(freed);
    if (freed.ok()) pending.emplace_back(nic, name);
  }
  for (const auto& [nic, name] : pending) result.Update(SetName(socket, nic.index, name));
  return result;
}

// A NIC that is being unplugged goes in the guest's own time, and is not in the way until then.
absl::Status GuestNetwork::Park(nl_sock* socket, const std::vector<Nic>& nics,
                                const std::set<int>& wanted) {
  absl::Status result;
  for (auto it = applied_.begin(); it != applied_.end();) {
    const int index = it->first;
    if (wanted.contains(index)) {
      ++it;
      continue;
    }
    const bool there = std::any_of(nics.begin(), nics.end(),
                                   [index](const Nic& nic) { return nic.index == index; });
    absl::Status parked;
    if (there) {
      // Down first: the kernel renames nothing else.
      parked = SetName(socket, index, absl::StrCat("gone", index));
      if (parked.ok()) parked = FlushAddresses(socket, index);
    }
    // It may have gone by itself meanwhile.
    if (!absl::IsNotFound(parked)) result.Update(parked);
    it = applied_.erase(it);
  }
  return result;
}

absl::Status GuestNetwork::Apply(nl_sock* socket, int index,
                                 const agent::v1::Interface& interface) {
  const auto before = applied_.find(index);
  const agent::v1::Interface* known =
      before == applied_.end() ? nullptr : &before->second.interface;
  if (known != nullptr && before->second.whole &&
      known->SerializeAsString() == interface.SerializeAsString()) {
    return absl::OkStatus();
  }
  absl::Status result;
  if (interface.mtu() != 0) {
    const NlLink change = Change();
    rtnl_link_set_mtu(change.get(), interface.mtu());
    result.Update(ApplyLink(socket, index, change.get(), "set MTU"));
  }
  result.Update(PrepareIpv6(interface));
  result.Update(SetUp(socket, index, !interface.down(), interface.name()));
  result.Update(SyncAddresses(socket, index, interface, known));
  applied_[index] = {interface, result.ok()};
  return result;
}

absl::Status GuestNetwork::Configure(const agent::v1::Network& network) {
  auto socket = ConnectNetlink();
  if (!socket.ok()) return socket.status();
  nl_sock* const sock = socket->get();
  absl::Status result;
  std::set<std::string> macs;
  std::map<std::string, const agent::v1::Interface*> interfaces;
  for (const agent::v1::Interface& interface : network.interfaces()) {
    absl::Status named = CheckInterfaceName(interface.name());
    const auto mac = NormalizeMac(interface.mac());
    if (named.ok()) named = mac.status();
    if (named.ok() && !interfaces.emplace(*mac, &interface).second) {
      named = absl::InvalidArgumentError(
          absl::StrCat("interface ", interface.name(), ": another one has its MAC ", *mac));
    }
    result.Update(named);
    if (mac.ok()) macs.insert(*mac);
  }
  const auto nics = WaitForNics(macs, nic_timeout_);
  if (!nics.ok()) return nics.status();
  std::vector<std::pair<Nic, std::string>> names;
  std::set<int> wanted;
  for (const auto& [mac, interface] : interfaces) {
    const auto nic = FindNic(*nics, mac);
    if (nic.has_value()) {
      names.emplace_back(*nic, interface->name());
      wanted.insert(nic->index);
    } else {
      result.Update(absl::NotFoundError(
          absl::StrCat("interface ", interface->name(), ": no NIC with MAC ", mac)));
    }
  }
  result.Update(Park(sock, *nics, wanted));
  result.Update(Rename(sock, names));
  for (const auto& [nic, name] : names) {
    const agent::v1::Interface& interface = *interfaces[nic.mac];
    result.Update(Annotate(Apply(sock, nic.index, interface), absl::StrCat("interface ", name)));
  }
  result.Update(SetUp(sock, static_cast<int>(::if_nametoindex("lo")), true, "lo"));
  result.Update(SyncRoutes(sock, network));
  result.Update(SyncNeighbours(sock, network, neighbours_));
  neighbours_.assign(network.neighbours().begin(), network.neighbours().end());
  return result;
}

}  // namespace magnetar::guest
