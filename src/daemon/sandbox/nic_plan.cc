#include "src/daemon/sandbox/nic_plan.h"

#include <algorithm>

#include "src/daemon/network/pod_interfaces.h"

namespace magnetar::daemon {
namespace {

bool HasNic(const std::vector<RecordedNic>& nics, int index) {
  return std::any_of(nics.begin(), nics.end(),
                     [index](const RecordedNic& nic) { return nic.interface == index; });
}

}  // namespace

const PodInterface* FindInterface(const PodState& state, int index) {
  const auto it = std::find_if(state.interfaces.begin(), state.interfaces.end(),
                               [index](const PodInterface& i) { return i.index == index; });
  return it == state.interfaces.end() ? nullptr : &*it;
}

const PodInterface* InterfaceOf(const RecordedNic& nic, const PodState& state) {
  const PodInterface* interface = FindInterface(state, nic.interface);
  const bool fits = interface != nullptr && nic.plugged && interface->tied &&
                    interface->mac == nic.mac && interface->mtu <= nic.mtu;
  return fits ? interface : nullptr;
}

std::vector<RecordedNic> ObsoleteNics(const std::vector<RecordedNic>& nics, const PodState& state) {
  std::vector<RecordedNic> obsolete;
  for (const RecordedNic& nic : nics) {
    if (InterfaceOf(nic, state) == nullptr) obsolete.push_back(nic);
  }
  return obsolete;
}

std::vector<RecordedNic> MissingNics(const std::vector<RecordedNic>& nics, const PodState& state) {
  std::set<uint32_t> used;
  for (const RecordedNic& nic : nics) used.insert(nic.slot);
  std::vector<RecordedNic> missing;
  uint32_t slot = 0;
  for (const PodInterface& interface : state.interfaces) {
    if (HasNic(nics, interface.index)) continue;
    while (used.contains(slot)) ++slot;
    if (slot >= kMaxInterfaces) break;
    missing.push_back({.slot = slot++,
                       .interface = interface.index,
                       .name = interface.name,
                       .mac = interface.mac,
                       .mtu = interface.mtu,
                       .plugged = false});
  }
  return missing;
}

std::vector<int> StrayTaps(const std::vector<RecordedNic>& nics, const PodState& state) {
  std::vector<int> stray;
  for (const auto& [index, mtu] : state.taps) {
    if (!HasNic(nics, index)) stray.push_back(index);
  }
  return stray;
}

std::vector<RecordedNic> AdoptNics(const PodState& state) {
  std::vector<RecordedNic> nics;
  for (const auto& [index, mtu] : state.taps) {
    const PodInterface* interface = FindInterface(state, index);
    nics.push_back({.slot = static_cast<uint32_t>(nics.size()),
                    .interface = index,
                    .name = interface == nullptr ? "" : interface->name,
                    .mac = interface == nullptr ? "" : interface->mac,
                    .mtu = mtu,
                    .plugged = true});
  }
  return nics;
}

agent::v1::Network NetworkOf(const std::vector<RecordedNic>& nics, const PodState& state) {
  std::set<std::string> carried;
  for (const RecordedNic& nic : nics) {
    if (const PodInterface* interface = InterfaceOf(nic, state)) carried.insert(interface->name);
  }
  agent::v1::Network network;
  for (const auto& interface : state.guest.interfaces()) {
    if (carried.contains(interface.name())) *network.add_interfaces() = interface;
  }
  for (const auto& route : state.guest.routes()) {
    if (carried.contains(route.device())) *network.add_routes() = route;
  }
  for (const auto& neighbour : state.guest.neighbours()) {
    if (carried.contains(neighbour.device())) *network.add_neighbours() = neighbour;
  }
  return network;
}

}  // namespace magnetar::daemon
