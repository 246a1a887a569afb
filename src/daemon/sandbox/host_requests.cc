#include "src/daemon/sandbox/host_requests.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "containerd/events.pb.h"
#include "cri/runtime.pb.h"
#include "magnetar/failpoint.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/storage/rootfs_source.h"

namespace magnetar::daemon {
namespace {

constexpr char kGuestHostname[] = "/run/magnetar/pod/hostname";
constexpr char kGuestHosts[] = "/run/magnetar/pod/hosts";
constexpr char kGuestResolvConf[] = "/run/magnetar/pod/resolv.conf";
constexpr char kGuestShm[] = "/run/magnetar/pod/shm";

ContainerStep ToRecord(const StorageStep& step) {
  return {step.kind == StorageStep::Kind::kMount ? "mount" : "disk", step.container_id, step.path,
          step.source, step.serial};
}

// Those that this daemon knows how to undo. One of another kind, which a later daemon has left,
// stays in the record for it.
std::vector<StorageStep> FromRecord(const Record& record) {
  std::vector<StorageStep> steps;
  for (const ContainerStep& step : record.container_steps) {
    if (step.kind != "mount" && step.kind != "disk") continue;
    steps.push_back({step.kind == "mount" ? StorageStep::Kind::kMount : StorageStep::Kind::kDisk,
                     step.container_id, step.path, step.source, step.serial});
  }
  return steps;
}

bool SameStep(const ContainerStep& a, const ContainerStep& b) {
  return a.kind == b.kind && a.container_id == b.container_id && a.path == b.path &&
         a.serial == b.serial;
}

}  // namespace

HostRequests::HostRequests(const Environment* environment, std::shared_ptr<RecordFile> record,
                           const asio::any_io_executor& strand)
    : env_(environment), record_(std::move(record)), changed_(strand) {
  const Record now = record_->Get();
  storage_.sandbox_id = now.id;
  storage_.directory = record_->directory();
  storage_.shared_directory = absl::StrCat(record_->directory(), "/shared");
  storage_.blocking = env_->blocking;
  // The record outlives this: both are held by the sandbox.
  storage_.journal_add = [record = record_](const StorageStep& step) {
    return record->Update([&](Record& r) { r.container_steps.push_back(ToRecord(step)); });
  };
  storage_.journal_remove = [record = record_](const StorageStep& step) {
    const ContainerStep gone = ToRecord(step);
    return record->Update([&](Record& r) {
      auto& steps = r.container_steps;
      steps.erase(std::remove_if(steps.begin(), steps.end(),
                                 [&](const ContainerStep& s) { return SameStep(s, gone); }),
                  steps.end());
    });
  };
  storage_.journal_steps = [record = record_] { return FromRecord(record->Get()); };
}

Co<void> HostRequests::Enter(std::string container_id) {
  while (busy_.count(container_id) != 0) {
    auto wait = changed_.Wait();
    co_await std::move(wait);
  }
  busy_.insert(std::move(container_id));
}

void HostRequests::Leave(const std::string& container_id) {
  busy_.erase(container_id);
  changed_.NotifyAll();
}

Co<agent::v1::HostResponse> HostRequests::Handle(agent::v1::HostRequest request) {
  auto self = shared_from_this();
  agent::v1::HostResponse response;
  absl::Status status;
  if (refusing_) {
    status = absl::UnavailableError("the sandbox is being stopped");
  } else if (request.has_prepare()) {
    auto call = Prepare(std::move(*request.mutable_prepare()));
    absl::StatusOr<agent::v1::PreparedContainer> prepared = co_await std::move(call);
    status = prepared.status();
    if (prepared.ok()) *response.mutable_prepared() = *std::move(prepared);
  } else if (request.has_release()) {
    std::string id = request.release().container_id();
    auto call = Release(std::move(id));
    status = co_await std::move(call);
    if (status.ok()) response.mutable_released();
  } else if (request.has_event()) {
    auto call = Publish(std::move(*request.mutable_event()));
    co_await std::move(call);
  } else {
    status = absl::UnimplementedError("this daemon does not know the request");
  }
  response.set_code(static_cast<int32_t>(status.code()));
  response.set_message(std::string(status.message()));
  co_return response;
}

Co<absl::StatusOr<agent::v1::PreparedContainer>> HostRequests::Prepare(
    agent::v1::PrepareContainer request) {
  const std::string id = request.container_id();
  if (absl::Status valid = ValidateId(id, "container_id"); !valid.ok()) co_return valid;
  auto enter = Enter(id);
  co_await std::move(enter);
  auto call = PrepareLocked(std::move(request));
  absl::StatusOr<agent::v1::PreparedContainer> result = co_await std::move(call);
  Leave(id);
  if (!result.ok()) {
    Log(LogLevel::kWarn, "container refused",
        {{"sandbox", storage_.sandbox_id},
         {"container", id},
         {"error", result.status().ToString()}});
  }
  co_return result;
}

Co<absl::StatusOr<agent::v1::PreparedContainer>> HostRequests::PrepareLocked(
    agent::v1::PrepareContainer request) {
  const Record now = record_->Get();
  const std::string& id = request.container_id();
  auto get = env_->containerd->GetContainer(now.containerd_namespace, id);
  absl::StatusOr<containerd::services::containers::v1::Container> container =
      co_await std::move(get);
  if (!container.ok()) co_return Annotate(container.status(), "ask containerd for the container");
  if (container->sandbox() != now.id) {
    co_return absl::PermissionDeniedError(
        absl::StrCat("container ", id, " does not belong to this sandbox"));
  }
  std::vector<std::string> types(request.rootfs_mount_types().begin(),
                                 request.rootfs_mount_types().end());
  auto mounts_call = RootfsMounts(env_->containerd, now.containerd_namespace,
                                  container->snapshotter(), container->snapshot_key(), id, types);
  absl::StatusOr<std::vector<containerd::types::Mount>> mounts = co_await std::move(mounts_call);
  if (!mounts.ok()) co_return Annotate(mounts.status(), "find the root filesystem");
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("container.prepare.before"));
  ContainerRequest want;
  want.container_id = id;
  want.spec_json = std::move(*container->mutable_spec()->mutable_value());
  want.rootfs = *std::move(mounts);
  want.guest_hostname = kGuestHostname;
  want.guest_hosts = kGuestHosts;
  want.guest_resolv_conf = kGuestResolvConf;
  want.guest_shm = kGuestShm;
  runtime::v1::PodSandboxConfig pod;
  want.pod_shares_pids =
      !pod.ParseFromString(now.pod_config) ||
      pod.linux().security_context().namespace_options().pid() != runtime::v1::CONTAINER;
  auto prepare = env_->storage->Prepare(storage_, std::move(want));
  absl::StatusOr<agent::v1::PreparedContainer> prepared = co_await std::move(prepare);
  if (prepared.ok()) MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("container.prepare.after"));
  co_return prepared;
}

Co<absl::Status> HostRequests::Release(std::string container_id) {
  if (absl::Status valid = ValidateId(container_id, "container_id"); !valid.ok()) co_return valid;
  auto enter = Enter(container_id);
  co_await std::move(enter);
  absl::Status status = Failpoint("container.release.before");
  if (status.ok()) {
    auto release = env_->storage->Release(storage_, container_id);
    status = co_await std::move(release);
  }
  if (status.ok()) status = Failpoint("container.release.after");
  Leave(container_id);
  if (!status.ok()) {
    Log(LogLevel::kWarn, "container not released",
        {{"sandbox", storage_.sandbox_id},
         {"container", container_id},
         {"error", status.ToString()}});
  }
  co_return status;
}

Co<void> HostRequests::Publish(agent::v1::GuestEvent event) {
  if (event.kind() != agent::v1::GuestEvent::OOM) co_return;
  // Only of a container that this sandbox holds: the guest names it.
  const Record now = record_->Get();
  const bool known =
      std::any_of(now.container_steps.begin(), now.container_steps.end(),
                  [&](const ContainerStep& s) { return s.container_id == event.container_id(); });
  if (!known) co_return;
  containerd::events::TaskOOM oom;
  oom.set_container_id(event.container_id());
  auto publish = env_->containerd->PublishEvent(
      now.containerd_namespace, "/tasks/oom", "containerd.events.TaskOOM", oom.SerializeAsString());
  const absl::Status status = co_await std::move(publish);
  if (!status.ok()) {
    Log(LogLevel::kWarn, "event not published",
        {{"sandbox", now.id}, {"topic", "/tasks/oom"}, {"error", status.ToString()}});
  }
}

Co<void> HostRequests::Reconcile(std::set<std::string> held) {
  auto self = shared_from_this();
  std::set<std::string> stale;
  const Record now = record_->Get();
  for (const ContainerStep& step : now.container_steps) {
    if (held.count(step.container_id) == 0) stale.insert(step.container_id);
  }
  for (const std::string& id : stale) {
    Log(LogLevel::kInfo, "releasing a container that the guest no longer holds",
        {{"sandbox", storage_.sandbox_id}, {"container", id}});
    auto release = Release(id);
    // It logs its failure, and is tried again when the daemon connects again.
    (void)co_await std::move(release);
  }
}

Co<void> HostRequests::Drain() {
  auto self = shared_from_this();
  while (!busy_.empty()) {
    auto wait = changed_.Wait();
    co_await std::move(wait);
  }
}

}  // namespace magnetar::daemon
