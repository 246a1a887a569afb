#include "src/daemon/sandbox/host_requests.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "cri/runtime.pb.h"
#include "magnetar/failpoint.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/async.h"
#include "src/daemon/sandbox/sizes.h"
#include "src/daemon/sandbox/task_event.h"
#include "src/daemon/storage/cri_metadata.h"
#include "src/daemon/storage/file_server.h"
#include "src/daemon/storage/rootfs_source.h"
#include "vmm/file_share.h"

namespace magnetar::daemon {
namespace {

using agent::v1::GuestEvent;

constexpr char kGuestHostname[] = "/run/magnetar/pod/hostname";
constexpr char kGuestHosts[] = "/run/magnetar/pod/hosts";
constexpr char kGuestResolvConf[] = "/run/magnetar/pod/resolv.conf";
constexpr char kGuestShm[] = "/run/magnetar/pod/shm";

// What a guest may ask for: a pod of many containers that start together is not slowed down, a
// guest that asks without end costs its host little.
constexpr double kRequestsPerSecond = 20;
constexpr double kRequestsAtOnce = 256;
// Three for each exec, and a probe may come every second for each container.
constexpr double kEventsPerSecond = 200;
constexpr double kEventsAtOnce = 2000;
// A containerd that cannot be reached is waited for by the call itself; this is for one that fails.
constexpr std::chrono::seconds kEventRetry{1};
// containerd's own (client/task.go), for a task whose end nobody saw.
constexpr uint32_t kUnknownExitStatus = 255;
constexpr double kLinesPerSecond = 1;
constexpr double kLinesAtOnce = 20;
// Operations of one sandbox side by side: a host path that hangs for ever keeps a thread of the
// pool that all sandboxes share.
constexpr size_t kOperationsAtOnce = 4;
constexpr std::chrono::seconds kVmLimit{10};

// As the record names them.
constexpr struct {
  StorageStep::Kind kind;
  const char* name;
} kStepKinds[] = {{StorageStep::Kind::kMount, "mount"},
                  {StorageStep::Kind::kDisk, "disk"},
                  {StorageStep::Kind::kVolumeDisk, "volume-disk"},
                  {StorageStep::Kind::kVolumeUse, "volume-use"}};

ContainerStep ToRecord(const StorageStep& step) {
  ContainerStep entry{"", step.container_id, step.path, step.source, step.serial};
  for (const auto& known : kStepKinds) {
    if (known.kind == step.kind) entry.kind = known.name;
  }
  return entry;
}

// Those that this daemon knows how to undo. One of another kind, which a later daemon has left,
// stays in the record for it.
std::vector<StorageStep> FromRecord(const Record& record) {
  std::vector<StorageStep> steps;
  for (const ContainerStep& step : record.container_steps) {
    for (const auto& known : kStepKinds) {
      if (step.kind != known.name) continue;
      steps.push_back({known.kind, step.container_id, step.path, step.source, step.serial});
    }
  }
  return steps;
}

bool SameStep(const ContainerStep& a, const ContainerStep& b) {
  return a.kind == b.kind && a.container_id == b.container_id && a.path == b.path &&
         a.serial == b.serial;
}

std::optional<ProcessIdentity> FileServer(const RecordFile& record) {
  const Record now = record.Get();
  const vmm::FileShare* share = vmm::FindFileShare(now.file_share);
  for (const RecordedProcess& process : now.processes) {
    if (share != nullptr && process.name == share->server) return process.identity;
  }
  return std::nullopt;
}

}  // namespace

HostRequests::HostRequests(const Environment* environment, std::shared_ptr<RecordFile> record,
                           const asio::any_io_executor& strand)
    : env_(environment),
      record_(std::move(record)),
      strand_(strand),
      changed_(strand),
      pace_(kRequestsPerSecond, kRequestsAtOnce),
      event_pace_(kEventsPerSecond, kEventsAtOnce),
      log_pace_(kLinesPerSecond, kLinesAtOnce) {
  const Record now = record_->Get();
  storage_.sandbox_id = now.id;
  storage_.directory = record_->directory();
  storage_.shared_directory = absl::StrCat(record_->directory(), "/shared");
  storage_.blocking = env_->storage_pool;
  storage_.file_server = [record = record_] { return FileServer(*record); };
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
  // Whether its creation was told the daemon before this one knew.
  for (const ContainerStep& step : now.container_steps) told_of_[step.container_id].created = true;
}

void HostRequests::SetVm(std::shared_ptr<vmm::Vm> vm) {
  if (vm_ != nullptr && !busy_.empty()) retired_.push_back(std::move(vm_));
  vm_ = std::move(vm);
  storage_.vm = vm_.get();
  vm_lost_ = false;
  changed_.NotifyAll();
}

Co<absl::Status> HostRequests::AwaitVm() {
  auto wait = WaitFor(
      changed_, [this] { return !vm_lost_ || refusing_; }, kVmLimit);
  const bool there = co_await std::move(wait);
  if (!there) co_return absl::UnavailableError("the VMM cannot be reached");
  co_return absl::OkStatus();
}

Co<absl::StatusOr<HostRequests::KeyGuard>> HostRequests::Enter(std::string container_id) {
  while (!refusing_ && (busy_.count(container_id) != 0 || busy_.size() >= kOperationsAtOnce)) {
    auto wait = changed_.Wait();
    co_await std::move(wait);
  }
  if (refusing_) co_return absl::UnavailableError("the sandbox is being stopped");
  busy_.insert(container_id);
  co_return KeyGuard(shared_from_this(), std::move(container_id));
}

void HostRequests::Leave(const std::string& container_id) {
  busy_.erase(container_id);
  if (busy_.empty()) retired_.clear();
  changed_.NotifyAll();
}

bool HostRequests::HasSteps(const std::string& container_id) const {
  const std::vector<StorageStep> steps = storage_.journal_steps();
  return std::any_of(steps.begin(), steps.end(),
                     [&](const StorageStep& s) { return s.container_id == container_id; });
}

// The guest decides how often there is something to warn of.
void HostRequests::Warn(std::string_view message, const std::string& container_id,
                        const absl::Status& status) {
  if (!log_pace_.TryTake(std::chrono::steady_clock::now())) {
    ++unlogged_;
    return;
  }
  Log(LogLevel::kWarn, message,
      {{"sandbox", storage_.sandbox_id},
       {"container", container_id},
       {"error", status.ToString()}});
  if (unlogged_ == 0) return;
  Log(LogLevel::kWarn, "the guest caused more warnings than are logged",
      {{"sandbox", storage_.sandbox_id}, {"left_out", absl::StrCat(unlogged_)}});
  unlogged_ = 0;
}

void HostRequests::Refuse() {
  refusing_ = true;
  changed_.NotifyAll();
}

Co<agent::v1::HostResponse> HostRequests::Handle(agent::v1::HostRequest request) {
  auto self = shared_from_this();
  agent::v1::HostResponse response;
  absl::Status status;
  if (request.has_event()) {
    const bool updated = request.event().kind() == GuestEvent::UPDATED;
    auto call = updated ? LearnLimits(request.event().container_id())
                        : Publish(request.id(), std::move(*request.mutable_event()));
    status = co_await std::move(call);
    response.set_code(static_cast<int32_t>(status.code()));
    response.set_message(std::string(status.message()));
    co_return response;
  }
  const std::chrono::nanoseconds pause = pace_.Take(std::chrono::steady_clock::now());
  auto paced = Pace(pause);
  co_await std::move(paced);
  if (refusing_) {
    status = absl::UnavailableError("the sandbox is being stopped");
  } else if (request.has_prepare()) {
    const auto begin = DaemonMetrics::Clock::now();
    auto call = Prepare(std::move(*request.mutable_prepare()));
    absl::StatusOr<agent::v1::PreparedContainer> prepared = co_await std::move(call);
    status = prepared.status();
    env_->metrics->PrepareEnded(status, begin);
    if (prepared.ok()) *response.mutable_prepared() = *std::move(prepared);
  } else if (request.has_release()) {
    std::string id = request.release().container_id();
    auto call = Release(std::move(id), /*again=*/false);
    status = co_await std::move(call);
    if (status.ok()) response.mutable_released();
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
  RetryReleases();
  auto enter = Enter(id);
  const absl::StatusOr<KeyGuard> key = co_await std::move(enter);
  if (!key.ok()) co_return key.status();
  auto vm = AwaitVm();
  const absl::Status reachable = co_await std::move(vm);
  if (!reachable.ok()) co_return reachable;
  auto call = PrepareLocked(std::move(request));
  absl::StatusOr<agent::v1::PreparedContainer> result = co_await std::move(call);
  if (result.ok() && refusing_) {
    // The teardown may not have waited for this: it must not find mounts that came later.
    auto undo = ReleaseLocked(id);
    (void)co_await std::move(undo);  // it logs its failure
    co_return absl::UnavailableError("the sandbox is being stopped");
  }
  if (result.ok()) {
    unreleased_.erase(id);
    told_of_.try_emplace(id);
    co_return result;
  }
  if (HasSteps(id)) unreleased_.insert(id);
  Warn("container refused", id, result.status());
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
  ContainerLimits limits = LimitsOfSpec(id, want.spec_json);
  want.rootfs = *std::move(mounts);
  want.guest_hostname = kGuestHostname;
  want.guest_hosts = kGuestHosts;
  want.guest_resolv_conf = kGuestResolvConf;
  want.guest_shm = kGuestShm;
  runtime::v1::PodSandboxConfig pod;
  want.pod_shares_pids =
      !pod.ParseFromString(now.pod_config) ||
      pod.linux().security_context().namespace_options().pid() != runtime::v1::CONTAINER;
  absl::StatusOr<std::string> target = TargetContainer(*container);
  if (!target.ok()) co_return target.status();
  want.pid_namespace_of = *std::move(target);
  want.devices = RequestedDevices(*container);
  // A guest that knows of no huge pages reserves none, and refuses the volume by name.
  if (HasFeature(now, "huge-pages")) want.huge_page_limits = HugePageLimits(*container);
  auto prepare = env_->storage->Prepare(storage_, std::move(want));
  absl::StatusOr<agent::v1::PreparedContainer> prepared = co_await std::move(prepare);
  if (prepared.ok()) MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("container.prepare.after"));
  if (prepared.ok()) SetLimits(std::move(limits));
  co_return prepared;
}

Co<absl::Status> HostRequests::Release(std::string container_id, bool again) {
  if (absl::Status valid = ValidateId(container_id, "container_id"); !valid.ok()) co_return valid;
  if (!again) RetryReleases();
  auto enter = Enter(container_id);
  const absl::StatusOr<KeyGuard> key = co_await std::move(enter);
  if (!key.ok()) co_return key.status();
  // Meanwhile somebody may have done it, or prepared a container of the same name.
  if (again && unreleased_.count(container_id) == 0) co_return absl::OkStatus();
  auto vm = AwaitVm();
  absl::Status status = co_await std::move(vm);
  if (status.ok()) {
    auto release = ReleaseLocked(container_id);
    status = co_await std::move(release);
  }
  if (status.ok()) {
    unreleased_.erase(container_id);
  } else {
    unreleased_.insert(container_id);
  }
  co_return status;
}

Co<absl::Status> HostRequests::ReleaseLocked(std::string container_id) {
  // Its task is gone, whatever else of it stays.
  SetLimits({.container_id = container_id});
  absl::Status status = Failpoint("container.release.before");
  if (status.ok()) {
    auto release = env_->storage->Release(storage_, container_id);
    status = co_await std::move(release);
  }
  if (status.ok()) status = Failpoint("container.release.after");
  if (!status.ok()) {
    env_->metrics->TeardownFailed("container");
    Warn("container not released", container_id, status);
  }
  co_return status;
}

void HostRequests::RetryReleases() {
  if (retrying_ || refusing_ || unreleased_.empty()) return;
  retrying_ = true;
  asio::co_spawn(strand_, Retry(), asio::detached);
}

Co<void> HostRequests::Retry() {
  auto self = shared_from_this();
  const absl::Cleanup over = [this] { retrying_ = false; };
  const std::set<std::string> ids = unreleased_;
  for (const std::string& id : ids) {
    auto release = Release(id, /*again=*/true);
    (void)co_await std::move(release);  // it logs its failure, and is tried again
  }
}

Co<absl::Status> HostRequests::LearnLimits(std::string container_id) {
  if (told_of_.count(container_id) == 0) {
    co_return absl::NotFoundError("an update of a container that this sandbox has not");
  }
  auto paced = Pace(event_pace_.Take(std::chrono::steady_clock::now()));
  co_await std::move(paced);
  auto get = env_->containerd->GetContainer(record_->Get().containerd_namespace, container_id);
  const absl::StatusOr<containerd::services::containers::v1::Container> container =
      co_await std::move(get);
  absl::Status status = container.status();
  if (status.ok() && container->sandbox() != storage_.sandbox_id) {
    status = absl::PermissionDeniedError("it does not belong to this sandbox");
  }
  if (!status.ok()) {
    Warn("the container's new limits are not known", container_id, status);
    co_return status;
  }
  // It may have been deleted meanwhile.
  if (HasSteps(container_id)) SetLimits(LimitsOfSpec(container_id, container->spec().value()));
  co_return absl::OkStatus();
}

Co<void> HostRequests::LearnAllLimits() {
  auto self = shared_from_this();
  std::vector<std::string> ids;
  for (const auto& [id, told] : told_of_) ids.push_back(id);
  for (const std::string& id : ids) {
    auto learn = LearnLimits(id);
    (void)co_await std::move(learn);  // it logs its failure
  }
}

void HostRequests::SetLimits(ContainerLimits limits) {
  if (refusing_) return;
  const auto same = [&](const ContainerLimits& other) {
    return other.container_id == limits.container_id;
  };
  const Record now = record_->Get();
  const auto old = std::find_if(now.container_limits.begin(), now.container_limits.end(), same);
  const ContainerLimits was = old == now.container_limits.end() ? ContainerLimits() : *old;
  if (was.memory_bytes == limits.memory_bytes && was.millicpus == limits.millicpus) return;
  const absl::Status written = record_->Update([&](Record& record) {
    auto& all = record.container_limits;
    all.erase(std::remove_if(all.begin(), all.end(), same), all.end());
    if (limits.memory_bytes != 0 || limits.millicpus != 0) all.push_back(limits);
  });
  if (!written.ok()) {
    Warn("limits not recorded", limits.container_id, written);
  } else if (limits_changed_) {
    limits_changed_();
  }
}

Co<void> HostRequests::Pace(std::chrono::nanoseconds pause) {
  if (pause.count() <= 0) co_return;
  auto wait = WaitFor(
      changed_, [this] { return refusing_; }, pause);
  co_await std::move(wait);
}

Co<absl::Status> HostRequests::Publish(uint64_t id, GuestEvent event) {
  // Sent again, on another connection of the agent: it is in line already, or has been published.
  if (id != 0 && id <= last_event_) {
    auto published = AwaitTurn(next_event_);
    co_await std::move(published);
    co_return absl::OkStatus();
  }
  const auto told = told_of_.find(event.container_id());
  if (told == told_of_.end()) {
    co_return absl::NotFoundError("an event of a container that this sandbox has not");
  }
  last_event_ = std::max(last_event_, id);
  if (event.kind() == GuestEvent::CREATED) told->second.created = true;
  if (event.kind() == GuestEvent::EXITED && event.exec_id().empty()) told->second.exit = event;
  if (event.kind() == GuestEvent::DELETED) told_of_.erase(told);
  const uint64_t turn = next_event_++;
  auto publish = PublishInTurn(turn, std::move(event));
  const absl::Status status = co_await std::move(publish);
  co_return status;
}

Co<absl::Status> HostRequests::PublishInTurn(uint64_t turn, GuestEvent event) {
  auto self = shared_from_this();
  const Record now = record_->Get();
  const absl::Cleanup next = [this] {
    ++publishing_;
    changed_.NotifyAll();
  };
  auto paced = Pace(event_pace_.Take(std::chrono::steady_clock::now()));
  co_await std::move(paced);
  auto await_turn = AwaitTurn(turn);
  co_await std::move(await_turn);
  const absl::StatusOr<TaskEvent> task_event =
      ToTaskEvent(event, now.vmm_pid, env_->clock->RealtimeNs());
  absl::Status status = task_event.status();
  bool again = status.ok();
  for (bool first = true; again; first = false) {
    auto publish = env_->containerd->PublishEvent(now.containerd_namespace, task_event->topic,
                                                  task_event->type_url, task_event->body);
    status = co_await std::move(publish);
    status = Annotate(status, task_event->topic);
    // Until containerd is back, or nobody wants to know any more.
    again = !refusing_ && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status));
    if (again && first) Warn("event not published yet", event.container_id(), status);
    auto rest = Pace(again ? kEventRetry : std::chrono::seconds(0));
    co_await std::move(rest);
  }
  if (!status.ok()) Warn("event not published", event.container_id(), status);
  co_return status;
}

void HostRequests::TellEnds(int64_t ended_at_ns) {
  const std::map<std::string, Told> told_of = std::exchange(told_of_, {});
  for (const auto& [id, told] : told_of) {
    if (!told.created) continue;
    GuestEvent event;
    if (told.exit.has_value()) {
      event = *told.exit;
    } else {
      event.set_kind(GuestEvent::EXITED);
      event.set_container_id(id);
      event.set_exit_status(kUnknownExitStatus);
      event.set_exited_at_ns(ended_at_ns);
      asio::co_spawn(strand_, PublishInTurn(next_event_++, event), asio::detached);
    }
    event.set_kind(GuestEvent::DELETED);
    asio::co_spawn(strand_, PublishInTurn(next_event_++, event), asio::detached);
  }
}

Co<void> HostRequests::AwaitTurn(uint64_t turn) {
  while (publishing_ < turn) {
    auto wait = changed_.Wait();
    co_await std::move(wait);
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
    auto release = Release(id, /*again=*/false);
    (void)co_await std::move(release);  // it logs its failure, and is tried again
  }
}

Co<bool> HostRequests::Drain(std::chrono::nanoseconds limit) {
  auto self = shared_from_this();
  auto wait = WaitFor(
      changed_, [this] { return busy_.empty(); }, limit);
  const bool idle = co_await std::move(wait);
  co_return idle;
}

}  // namespace magnetar::daemon
