#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/network/forward.h"
#include "src/daemon/network/live.h"
#include "src/daemon/network/netlink.h"
#include "src/daemon/network/netns.h"
#include "src/daemon/network/pod_interfaces.h"
#include "src/daemon/network/pod_network.h"
#include "src/daemon/network/snapshot.h"
#include "src/daemon/network/tie.h"

namespace magnetar::daemon {
namespace {

// The functions of this namespace run in the pod's netns.

absl::Status Untie(nl_sock* socket, std::optional<uint32_t> uid) {
  const auto untied = UntieAll(socket, uid);
  if (!untied.ok()) return untied.status();
  return untied->shared ? absl::OkStatus() : RemoveForwarding();
}

// Removes what a crash may have left, unless a VM still uses it: a tap has a
// carrier while somebody holds its descriptor.
absl::Status RemoveLeftovers(nl_sock* socket) {
  auto links = ReadLinks(socket);
  if (!links.ok()) return links.status();
  bool found = false;
  for (const LinkState& link : *links) {
    if (!InterfaceOfTap(link).has_value()) continue;
    found = true;
    if (link.carrier) {
      return absl::FailedPreconditionError(
          absl::StrCat("it is tied to a living VM already, by ", link.name));
    }
  }
  return found ? Untie(socket, std::nullopt) : absl::OkStatus();
}

absl::Status TieAll(nl_sock* socket, uint32_t uid, PodNetwork& network) {
  auto snapshot = ReadSnapshot(socket);
  if (!snapshot.ok()) return snapshot.status();
  auto interfaces = SelectInterfaces(*snapshot);
  if (!interfaces.ok()) return interfaces.status();
  network.guest = BuildGuestNetwork(*snapshot, *interfaces);
  for (const LinkState& interface : *interfaces) {
    auto tap = TieInterface(socket, interface, uid);
    if (!tap.ok()) return Annotate(tap.status(), absl::StrCat("tie ", interface.name));
    network.taps.push_back(*std::move(tap));
  }
  auto listener = StartForwarding();
  if (!listener.ok()) return listener.status();
  network.forward_listener = *std::move(listener);
  return absl::OkStatus();
}

absl::Status AttachHere(uint32_t uid, PodNetwork& network) {
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  MAGNETAR_RETURN_IF_ERROR(RemoveLeftovers(socket->get()));
  network.foreign_tables = ForeignTables();
  absl::Status status = TieAll(socket->get(), uid, network);
  if (status.ok()) return status;
  network.taps.clear();
  network.forward_listener.reset();
  if (absl::Status undone = Untie(socket->get(), uid); !undone.ok()) {
    return Annotate(status, absl::StrCat("(and undoing failed: ", undone.message(), ")"));
  }
  return status;
}

absl::Status DetachHere(uint32_t uid) {
  auto socket = OpenRouteSocket();
  if (!socket.ok()) return socket.status();
  return Untie(socket->get(), uid);
}

class KernelNetworkManager final : public NetworkManager {
 public:
  absl::StatusOr<PodNetwork> Attach(const std::string& netns_path, uint32_t uid) override {
    auto netns = OpenNetns(netns_path);
    if (absl::IsNotFound(netns.status())) {
      return absl::InvalidArgumentError(netns.status().message());
    }
    if (!netns.ok()) return netns.status();
    PodNetwork network;
    absl::Status status =
        RunInNetns(netns->get(), [uid, &network] { return AttachHere(uid, network); });
    if (!status.ok()) return Annotate(status, absl::StrCat("network namespace ", netns_path));
    if (!network.foreign_tables.empty()) {
      Log(LogLevel::kWarn, "rules in the pod's netns that its VM's traffic bypasses",
          {{"netns", netns_path}, {"tables", absl::StrJoin(network.foreign_tables, ", ")}});
    }
    network.netns = *std::move(netns);
    return network;
  }

  absl::Status Detach(const std::string& netns_path, uint32_t uid) override {
    auto netns = OpenNetns(netns_path);
    // Attach refuses what is no pod's netns, so nothing of ours can be in it.
    if (absl::IsNotFound(netns.status()) || absl::IsInvalidArgument(netns.status())) {
      return absl::OkStatus();
    }
    if (!netns.ok()) return netns.status();
    return Annotate(RunInNetns(netns->get(), [uid] { return DetachHere(uid); }),
                    absl::StrCat("network namespace ", netns_path));
  }

  absl::StatusOr<PodWatch> Watch(const ProcessIdentity& vmm) override {
    auto netns = OpenNetns(absl::StrCat("/proc/", vmm.pid, "/ns/net"));
    if (!netns.ok()) return netns.status();
    // What was opened is its, unless its pid is another's by now.
    if (auto alive = OpenProcess(vmm); !alive.ok()) return alive.status();
    auto news = RunInNetns(netns->get(), [] { return OpenNews(); });
    if (!news.ok()) return news.status();
    return PodWatch{*std::move(netns), *std::move(news)};
  }

  absl::StatusOr<PodState> Read(int netns, uint32_t uid, const std::set<int>& tied) override {
    return RunInNetns(netns, [uid, &tied] { return ReadPod(uid, tied); });
  }

  absl::StatusOr<PodTap> Tie(int netns, const PodInterface& interface, uint32_t uid) override {
    return RunInNetns(netns, [&interface, uid] { return TieLive(interface, uid); });
  }

  absl::Status Untie(int netns, int index, uint32_t uid) override {
    return RunInNetns(netns, [index, uid] { return UntieLive(index, uid); });
  }

  absl::Status SetMtu(int netns, const PodInterface& interface) override {
    return RunInNetns(netns, [&interface] { return SetTapMtu(interface.index, interface.mtu); });
  }
};

}  // namespace

std::unique_ptr<NetworkManager> CreateNetworkManager() {
  return std::make_unique<KernelNetworkManager>();
}

}  // namespace magnetar::daemon
