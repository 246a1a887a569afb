// What a guest asks of its host, and the spec that containerd has for the container: the first
// two bytes give the length of a HostRequest, the rest is the spec. Only the sandbox's own
// container may ever reach the storage, and no rewritten spec may name anything of the host.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "src/daemon/containerd/fake_client.h"
#include "src/daemon/sandbox/host_requests.h"
#include "src/daemon/storage/rootfs_plan.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {
namespace {

using Json = nlohmann::json;

constexpr char kOwn[] = "own";
constexpr char kForeign[] = "foreign";

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckSpec(const RewrittenSpec& rewritten, const SpecRequest& request) {
  static const std::set<std::string> kNamespacePaths = {
      "/proc/1/ns/net", "/proc/1/ns/ipc", "/proc/1/ns/uts", "/run/magnetar/pod/ns/pid"};
  const Json spec = Json::parse(rewritten.json);
  Require(spec["root"]["path"] == request.guest_rootfs);
  Require(spec["linux"]["cgroupsPath"] == "/pod/" + request.container_id);
  Require(!spec.contains("hooks"));
  for (const Json& ns : spec["linux"]["namespaces"]) {
    Require(ns["type"] != "user");
    const std::string path = ns.value("path", Json("")).is_string() ? ns.value("path", "") : "";
    Require(path.empty() || kNamespacePaths.count(path) != 0);
  }
  for (const Json& mount : spec["mounts"]) {
    if (!mount.contains("type") || mount["type"] != "bind") continue;
    Require(mount["source"].get<std::string>().starts_with("/run/magnetar/"));
  }
  for (const HostBind& bind : rewritten.binds) {
    Require(bind.source.size() > 1 && bind.source[0] == '/');
    Require(bind.name == "m" + std::to_string(bind.index));
  }
}

// Does what is pure of the real storage.
class CheckingStorage : public ContainerStorage {
 public:
  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(SandboxStorage&,
                                                           ContainerRequest request) override {
    Require(request.container_id == kOwn);
    Require(PlanRootfs(request.rootfs).ok());
    SpecRequest rules;
    rules.sandbox_id = "sandbox";
    rules.container_id = request.container_id;
    rules.guest_rootfs = "/run/magnetar/shared/own/rootfs";
    rules.guest_mounts = "/run/magnetar/shared/own";
    rules.guest_hostname = request.guest_hostname;
    rules.guest_hosts = request.guest_hosts;
    rules.guest_resolv_conf = request.guest_resolv_conf;
    rules.guest_shm = request.guest_shm;
    rules.pod_shares_pids = request.pod_shares_pids;
    const absl::StatusOr<RewrittenSpec> spec = RewriteSpec(request.spec_json, rules);
    if (!spec.ok()) co_return spec.status();
    CheckSpec(*spec, rules);
    agent::v1::PreparedContainer prepared;
    prepared.set_spec(spec->json);
    co_return prepared;
  }
  Co<absl::Status> Release(SandboxStorage&, std::string container_id) override {
    Require(!container_id.empty() && container_id.find('/') == std::string::npos);
    co_return absl::OkStatus();
  }
  absl::Status UnmountAll(const std::string&) override { return absl::OkStatus(); }
};

void Run(const std::string& request_bytes, std::string spec) {
  agent::v1::HostRequest request;
  if (!request.ParseFromString(request_bytes)) return;

  FakeContainerdClient containerd;
  containerd.containers[kOwn].set_sandbox("sandbox");
  containerd.containers[kOwn].set_snapshotter("overlayfs");
  containerd.containers[kOwn].set_snapshot_key("key");
  containerd.containers[kOwn].mutable_spec()->set_value(std::move(spec));
  containerd.containers[kForeign].set_sandbox("another");
  auto& mount = containerd.snapshots["overlayfs/key"].emplace_back();
  mount.set_type("overlay");
  mount.add_options("lowerdir=/a:/b");

  CheckingStorage storage;
  asio::io_context io;
  Environment environment;
  environment.io = &io;
  environment.containerd = &containerd;
  environment.storage = &storage;
  Record record;
  record.id = "sandbox";
  record.containerd_namespace = "k8s.io";
  const auto requests = std::make_shared<HostRequests>(
      &environment, std::make_shared<RecordFile>("/nonexistent", record), io.get_executor());
  bool answered = false;
  auto ask = [](std::shared_ptr<HostRequests> to, agent::v1::HostRequest what,
                bool* done) -> Co<void> {
    auto call = to->Handle(std::move(what));
    const agent::v1::HostResponse response = co_await std::move(call);
    Require(response.has_prepared() || response.has_released() || response.code() != 0 ||
            response.message().empty());
    *done = true;
  };
  asio::co_spawn(io, ask(requests, std::move(request), &answered), asio::detached);
  io.run();
  Require(answered);
}

}  // namespace
}  // namespace magnetar::daemon

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t length = std::min<size_t>(data[0] * 256u + data[1], bytes.size());
  magnetar::daemon::Run(bytes.substr(0, length), bytes.substr(length));
  return 0;
}
