#pragma once

#include <set>
#include <string>
#include <vector>

#include "magnetar/agent.pb.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/sandbox/record.h"

// What a running VM's NICs lack of what the pod's netns holds; no calls.
namespace magnetar::daemon {

// The interface with this index, or nullptr.
const PodInterface* FindInterface(const PodState& state, int index);

// The interface that a NIC stands for, if it is there and the NIC still fits it.
const PodInterface* InterfaceOf(const RecordedNic& nic, const PodState& state);

// NICs to unplug: of interfaces that are gone, were changed beyond what a NIC can follow, or are
// tied no longer; and those that somebody was at when the daemon died.
std::vector<RecordedNic> ObsoleteNics(const std::vector<RecordedNic>& nics, const PodState& state);

// NICs to plug in, each in a slot of its own. An interface whose old NIC is still there waits.
std::vector<RecordedNic> MissingNics(const std::vector<RecordedNic>& nics, const PodState& state);

// Interfaces whose taps no NIC has.
std::vector<int> StrayTaps(const std::vector<RecordedNic>& nics, const PodState& state);

// The NICs of a VM whose record tells of none, since a daemon started it that did not note them: in
// the order of their interfaces.
std::vector<RecordedNic> AdoptNics(const PodState& state);

// Of the guest's network what the NICs carry.
agent::v1::Network NetworkOf(const std::vector<RecordedNic>& nics, const PodState& state);

}  // namespace magnetar::daemon
