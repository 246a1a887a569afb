#pragma once

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/daemon/sandbox/testing/fake_world.h"

// What lies around a VM on the host, of a FakeWorld, which outlives it: each call is noted there,
// and fails there.
namespace magnetar::daemon {

class FakeCgroups : public CgroupManager {
 public:
  explicit FakeCgroups(FakeWorld* world) : world_(world) {}
  absl::StatusOr<std::vector<UniqueFd>> Create(const std::string&, const std::string& id,
                                               const SandboxLimits&) override {
    absl::Status status = world_->NoteBlocking("cgroup.create");
    if (!status.ok()) return status;
    world_->Made("cgroup " + id);
    return std::vector<UniqueFd>();
  }
  absl::Status Update(const std::string&, const std::string&,
                      const SandboxLimits& limits) override {
    world_->updated_memory_bytes = limits.memory_bytes;
    return world_->Note("cgroup.update");
  }
  absl::StatusOr<io::containerd::cgroups::v2::Metrics> Metrics(const std::string&,
                                                               const std::string&) override {
    absl::Status status = world_->Note("cgroup.metrics");
    if (!status.ok()) return status;
    return io::containerd::cgroups::v2::Metrics();
  }
  absl::StatusOr<uint64_t> MemoryLimitAbove(const std::string&, const std::string&) override {
    return world_->memory_limit_above.load();
  }
  absl::Status Remove(const std::string&, const std::string& id) override {
    absl::Status status = world_->Note("cgroup.remove");
    if (status.ok()) world_->Removed("cgroup " + id);
    return status;
  }

 private:
  FakeWorld* world_;
};

class FakeNetwork : public NetworkManager {
 public:
  explicit FakeNetwork(FakeWorld* world) : world_(world) {}
  absl::StatusOr<PodNetwork> Attach(const std::string& path, uint32_t) override {
    absl::Status status = world_->NoteBlocking("network.attach");
    if (!status.ok()) return status;
    world_->Made("network " + path);
    return PodNetwork();
  }
  absl::StatusOr<PodWatch> Watch(const ProcessIdentity&) override {
    if (absl::Status status = world_->Note("network.watch"); !status.ok()) return status;
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
      return absl::InternalError("socketpair");
    }
    world_->Watched(UniqueFd(ends[0]));
    return PodWatch{UniqueFd(), UniqueFd(ends[1])};
  }
  absl::StatusOr<PodState> Read(int, uint32_t, const std::set<int>&) override {
    absl::Status status = world_->Note("network.read");
    if (!status.ok()) return status;
    return world_->pod();
  }
  absl::StatusOr<PodTap> Tie(int, const PodInterface& interface, uint32_t) override {
    absl::Status status = world_->NoteBlocking("network.tie");
    if (!status.ok()) return status;
    world_->ChangePod([&](PodState& pod) {
      pod.taps[interface.index] = interface.mtu;
      for (PodInterface& i : pod.interfaces) i.tied |= i.index == interface.index;
    });
    PodTap tap;
    tap.index = interface.index;
    tap.mac = interface.mac;
    tap.mtu = interface.mtu;
    return tap;
  }
  absl::Status Untie(int, int index, uint32_t) override {
    absl::Status status = world_->NoteBlocking("network.untie");
    if (!status.ok()) return status;
    world_->ChangePod([&](PodState& pod) {
      pod.taps.erase(index);
      for (PodInterface& i : pod.interfaces) i.tied &= i.index != index;
    });
    return absl::OkStatus();
  }
  absl::Status SetMtu(int, const PodInterface& interface) override {
    world_->ChangePod([&](PodState& pod) { pod.taps[interface.index] = interface.mtu; });
    return world_->Note("network.mtu");
  }
  absl::Status Detach(const std::string& path, uint32_t) override {
    absl::Status status = world_->NoteBlocking("network.detach");
    if (status.ok()) world_->Removed("network " + path);
    return status;
  }

 private:
  FakeWorld* world_;
};

class FakeStorage : public ContainerStorage {
 public:
  explicit FakeStorage(FakeWorld* world) : world_(world) {}
  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(SandboxStorage& sandbox,
                                                           ContainerRequest request) override {
    world_->pod_shares_pids = request.pod_shares_pids;
    world_->pid_namespace_of = request.pid_namespace_of;
    world_->devices = request.devices;
    auto note = world_->NoteAsync("storage.prepare");
    absl::Status status = co_await std::move(note);
    if (!status.ok()) co_return status;
    StorageStep step;
    step.kind = StorageStep::Kind::kMount;
    step.container_id = request.container_id;
    step.path = absl::StrCat(sandbox.shared_directory, "/", request.container_id);
    status = sandbox.journal_add(step);
    if (!status.ok()) co_return status;
    agent::v1::PreparedContainer prepared;
    prepared.set_spec(request.spec_json);
    co_return prepared;
  }
  Co<absl::Status> Release(SandboxStorage& sandbox, std::string id) override {
    auto note = world_->NoteAsync("storage.release");
    absl::Status status = co_await std::move(note);
    for (const StorageStep& step : sandbox.journal_steps()) {
      if (status.ok() && step.container_id == id) status = sandbox.journal_remove(step);
    }
    co_return status;
  }
  absl::Status UnmountAll(const std::string&) override { return world_->Note("storage.unmount"); }

 private:
  FakeWorld* world_;
};

class FakeShared : public SharedDirectory {
 public:
  explicit FakeShared(FakeWorld* world) : world_(world) {}
  absl::Status Make(const std::string& path) override {
    absl::Status status = world_->NoteBlocking("shared.make");
    if (status.ok()) world_->Made("shared " + path);
    return status;
  }
  absl::Status Remove(const std::string& path) override {
    absl::Status status = world_->Note("shared.remove");
    if (status.ok()) world_->Removed("shared " + path);
    return status;
  }

 private:
  FakeWorld* world_;
};

}  // namespace magnetar::daemon
