#include "src/daemon/storage/container_storage.h"

#include <algorithm>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/this_coro.hpp>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/storage/block_volume.h"
#include "src/daemon/storage/container_mounts.h"
#include "src/daemon/storage/disk_image.h"
#include "src/daemon/storage/empty_dir.h"
#include "src/daemon/storage/rootfs_plan.h"
#include "src/daemon/storage/spec_rewrite.h"

namespace magnetar::daemon {
namespace {

constexpr char kGuestShared[] = "/run/magnetar/shared/";
constexpr char kGuestVolumes[] = "/run/magnetar/pod/volumes/";
constexpr char kGuestContainers[] = "/run/magnetar/containers/";
constexpr char kRootfs[] = "rootfs";
// Whose paths, 4 KiB at most, fit into a message.
constexpr size_t kMaxNestedMounts = 512;

// To be followed by the step itself.
absl::Status AddStep(SandboxStorage& sandbox, const StorageStep& step) {
  const absl::Status status = sandbox.journal_add(step);
  if (!status.ok()) return Annotate(status, "journal");
  return Failpoint("storage.step.before");
}

bool HasSteps(const SandboxStorage& sandbox, const std::string& container_id) {
  const std::vector<StorageStep> steps = sandbox.journal_steps();
  return std::any_of(steps.begin(), steps.end(), [&container_id](const StorageStep& step) {
    return step.container_id == container_id;
  });
}

// The directory of all sandboxes, which holds this one's.
std::string RunDirectory(const SandboxStorage& sandbox) {
  std::string directory = sandbox.directory;
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  return directory.substr(0, std::max<size_t>(directory.rfind('/'), 1));
}

StorageStep MountStep(const SandboxStorage& sandbox, const std::string& container_id,
                      const std::string& name) {
  StorageStep step;
  step.kind = StorageStep::Kind::kMount;
  step.container_id = container_id;
  step.path = absl::StrCat(sandbox.shared_directory, "/", container_id, "/", name);
  return step;
}

SharedPlace PlaceOf(const SandboxStorage& sandbox) {
  return {sandbox.shared_directory, sandbox.file_server ? sandbox.file_server() : std::nullopt};
}

ShareTarget TargetOf(const SharedPlace& place, const StorageStep& step) {
  return {place, step.container_id, step.path.substr(step.path.rfind('/') + 1)};
}

Co<absl::Status> AttachDisk(SandboxStorage* sandbox, std::string container_id, RootfsPlan plan,
                            agent::v1::PreparedContainer* prepared) {
  StorageStep step;
  step.kind = StorageStep::Kind::kDisk;
  step.container_id = container_id;
  step.source = plan.source;
  step.serial = DiskSerial(container_id);
  const std::vector<StorageStep> held = sandbox->journal_steps();
  const bool taken = std::any_of(held.begin(), held.end(), [&step](const StorageStep& other) {
    return other.serial == step.serial;
  });
  if (taken) {
    co_return absl::AlreadyExistsError(absl::StrCat("rootfs: a disk with serial ", step.serial));
  }

  auto open = RunBlocking(*sandbox->blocking, [source = plan.source, ro = plan.read_only] {
    return OpenDiskImage(source, ro);
  });
  absl::StatusOr<UniqueFd> image = co_await std::move(open);
  if (!image.ok()) co_return Annotate(image.status(), kRootfs);
  if (sandbox->vm == nullptr) co_return absl::UnavailableError("rootfs: the VM is gone");

  MAGNETAR_CO_RETURN_IF_ERROR(AddStep(*sandbox, step));
  vmm::DiskSpec disk;
  disk.serial = step.serial;
  disk.fd = image->get();
  disk.read_only = plan.read_only;
  auto add = sandbox->vm->AddDisk(std::move(disk));
  const absl::Status added = co_await std::move(add);
  if (!added.ok()) co_return Annotate(added, absl::StrCat("rootfs: attach ", plan.source));
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("storage.step.after"));

  agent::v1::Storage* storage = prepared->add_storages();
  storage->set_kind(agent::v1::Storage::DISK);
  storage->set_serial(step.serial);
  storage->set_fstype(plan.fstype);
  for (std::string& option : plan.options) storage->add_options(std::move(option));
  storage->set_target(absl::StrCat(kGuestContainers, container_id, "/", kRootfs));
  storage->set_read_only(plan.read_only);
  co_return absl::OkStatus();
}

Co<absl::Status> ShareFiles(SandboxStorage* sandbox, SharedPlace place, std::string container_id,
                            RootfsPlan plan) {
  const StorageStep step = MountStep(*sandbox, container_id, kRootfs);
  MAGNETAR_CO_RETURN_IF_ERROR(AddStep(*sandbox, step));
  auto share =
      RunBlocking(*sandbox->blocking, [plan = std::move(plan), target = TargetOf(place, step)] {
        return ShareRootfs(plan, target);
      });
  const absl::Status status = co_await std::move(share);
  MAGNETAR_CO_RETURN_IF_ERROR(status);
  co_return Failpoint("storage.step.after");
}

Co<absl::Status> ShareHostPaths(SandboxStorage* sandbox, SharedPlace place,
                                std::string container_id, std::vector<HostBind> binds) {
  const std::string run_directory = RunDirectory(*sandbox);
  for (const HostBind& bind : binds) {
    const StorageStep step = MountStep(*sandbox, container_id, bind.name);
    MAGNETAR_CO_RETURN_IF_ERROR(AddStep(*sandbox, step));
    auto share =
        RunBlocking(*sandbox->blocking, [bind, target = TargetOf(place, step), run_directory] {
          return ShareBind(bind, target, run_directory);
        });
    const absl::Status status = co_await std::move(share);
    MAGNETAR_CO_RETURN_IF_ERROR(status);
    MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("storage.step.after"));
  }
  co_return absl::OkStatus();
}

// The guest is to have them before the container is made. One that is shared later, or not told of,
// is mounted by whoever walks into it. Not those below a bind that follows the host: what the guest
// has mounted the host could not unmount.
Co<void> AddNestedMounts(SandboxStorage* sandbox, SharedPlace place, std::string container_id,
                         std::set<std::string> followers, agent::v1::PreparedContainer* prepared) {
  auto find = RunBlocking(*sandbox->blocking,
                          [place, container_id] { return NestedMounts(place, container_id); });
  absl::StatusOr<std::vector<std::string>> nested = co_await std::move(find);
  std::string left_out;
  if (!nested.ok()) {
    left_out = nested.status().ToString();
    nested.emplace();
  }
  std::erase_if(*nested, [&followers](const std::string& path) {
    return followers.contains(path.substr(0, path.find('/')));
  });
  if (nested->size() > kMaxNestedMounts) {
    left_out = absl::StrCat(nested->size() - kMaxNestedMounts, " too many");
    nested->resize(kMaxNestedMounts);
  }
  if (!left_out.empty()) {
    Log(LogLevel::kWarn, "mounts within volumes are not prepared",
        {{"sandbox", sandbox->sandbox_id}, {"container", container_id}, {"error", left_out}});
  }
  for (std::string& path : *nested) prepared->add_nested_mounts(std::move(path));
}

// Its arguments are checked; leaves its steps behind when it fails.
Co<absl::Status> Build(SandboxStorage* sandbox, std::string container_id, RootfsPlan plan,
                       std::vector<BlockDevice> devices, std::vector<HostBind> binds,
                       agent::v1::PreparedContainer* prepared) {
  const SharedPlace place = PlaceOf(*sandbox);
  if (sandbox->file_server && !place.file_server.has_value()) {
    co_return absl::UnavailableError("there is no file server");
  }
  absl::Status status;
  if (plan.kind == RootfsPlan::Kind::kDisk) {
    auto attach = AttachDisk(sandbox, container_id, std::move(plan), prepared);
    status = co_await std::move(attach);
  } else {
    auto share = ShareFiles(sandbox, place, container_id, std::move(plan));
    status = co_await std::move(share);
  }
  MAGNETAR_CO_RETURN_IF_ERROR(status);
  auto volumes = AttachBlockVolumes(sandbox, container_id, std::move(devices), prepared);
  status = co_await std::move(volumes);
  MAGNETAR_CO_RETURN_IF_ERROR(status);
  std::set<std::string> followers;
  for (const HostBind& bind : binds) {
    if (bind.follow_host) followers.insert(bind.name);
  }
  auto share = ShareHostPaths(sandbox, place, container_id, std::move(binds));
  status = co_await std::move(share);
  MAGNETAR_CO_RETURN_IF_ERROR(status);
  auto nested =
      AddNestedMounts(sandbox, place, std::move(container_id), std::move(followers), prepared);
  co_await std::move(nested);
  co_return absl::OkStatus();
}

// Undoes it and removes it from the journal.
Co<absl::Status> UndoStep(SandboxStorage* sandbox, SharedPlace place, StorageStep step) {
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("storage.undo.before"));
  switch (step.kind) {
    case StorageStep::Kind::kMount: {
      auto unshare = RunBlocking(*sandbox->blocking,
                                 [target = TargetOf(place, step)] { return Unshare(target); });
      const absl::Status unshared = co_await std::move(unshare);
      MAGNETAR_CO_RETURN_IF_ERROR(unshared);
      break;
    }
    case StorageStep::Kind::kDisk: {
      auto detach = DetachDisk(sandbox, step.serial, step.source);
      const absl::Status detached = co_await std::move(detach);
      MAGNETAR_CO_RETURN_IF_ERROR(detached);
      break;
    }
    case StorageStep::Kind::kVolumeDisk:
    case StorageStep::Kind::kVolumeUse: {
      auto release = ReleaseBlockVolume(sandbox, step);
      const absl::Status released = co_await std::move(release);
      MAGNETAR_CO_RETURN_IF_ERROR(released);
      co_return Failpoint("storage.undo.after");
    }
  }
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("storage.undo.after"));
  co_return Annotate(sandbox->journal_remove(step), "journal");
}

Co<absl::Status> ReleaseSteps(SandboxStorage* sandbox, std::string container_id) {
  std::vector<StorageStep> steps = sandbox->journal_steps();
  std::erase_if(steps, [&container_id](const StorageStep& step) {
    return step.container_id != container_id;
  });
  std::reverse(steps.begin(), steps.end());
  const SharedPlace place = PlaceOf(*sandbox);
  absl::Status first_error;
  for (const StorageStep& step : steps) {
    auto undo = UndoStep(sandbox, place, step);
    const absl::Status status = co_await std::move(undo);
    first_error.Update(status);
  }
  auto remove = RunBlocking(*sandbox->blocking, [shared = sandbox->shared_directory, container_id] {
    return RemoveShares(shared, container_id);
  });
  const absl::Status removed = co_await std::move(remove);
  first_error.Update(removed);
  co_return Annotate(first_error, absl::StrCat("release ", container_id));
}

// Where the container has it in the guest.
std::string AddGuestVolume(const GuestVolume& volume, const std::string& container_id,
                           agent::v1::PreparedContainer* prepared) {
  const std::string whole = absl::StrCat(kGuestVolumes, volume.name);
  agent::v1::Storage* storage = prepared->add_storages();
  storage->set_kind(volume.page_size == 0 ? agent::v1::Storage::TMPFS
                                          : agent::v1::Storage::HUGETLBFS);
  for (const std::string& option : volume.options) storage->add_options(option);
  storage->set_target(whole);
  if (volume.parts.empty()) return whole;
  const std::string target = absl::StrCat(kGuestContainers, container_id, "/m", volume.index);
  storage = prepared->add_storages();
  storage->set_kind(agent::v1::Storage::VOLUME_PART);
  storage->set_volume(whole);
  storage->set_target(target);
  for (const GuestVolume::Part& part : volume.parts) {
    agent::v1::Storage::Part* step = storage->add_parts();
    step->set_name(part.name);
    step->set_mode(part.mode);
    step->set_uid(part.uid);
    step->set_gid(part.gid);
  }
  return target;
}

// By the mount that has them, if there is one.
void NameHugePages(const std::vector<GuestVolume>& volumes, std::vector<HugePages>& huge_pages) {
  for (HugePages& pages : huge_pages) {
    for (const GuestVolume& volume : volumes) {
      if (volume.page_size == pages.page_size) pages.field = volume.field;
    }
  }
}

// The spec, and the storages that its mounts take in the guest.
Co<absl::StatusOr<RewrittenSpec>> Rewrite(SandboxStorage* sandbox, std::string spec_json,
                                          SpecRequest rules,
                                          agent::v1::PreparedContainer* prepared) {
  absl::StatusOr<RewrittenSpec> spec = RewriteSpec(spec_json, rules);
  if (!spec.ok()) co_return spec.status();
  std::vector<HostBind> candidates = spec->binds;
  std::erase_if(candidates, [](const HostBind& bind) { return !MayBeEmptyDir(bind.source); });
  if (candidates.empty()) co_return spec;
  auto find = RunBlocking(*sandbox->blocking, [candidates = std::move(candidates)] {
    return FindGuestVolumes(candidates);
  });
  const absl::StatusOr<std::vector<GuestVolume>> volumes = co_await std::move(find);
  if (!volumes.ok()) co_return volumes.status();
  if (volumes->empty()) co_return spec;
  for (const GuestVolume& volume : *volumes) {
    rules.guest_volumes[volume.index] = AddGuestVolume(volume, rules.container_id, prepared);
  }
  // Which binds the guest holds shows only when they are known.
  spec = RewriteSpec(spec_json, rules);
  if (spec.ok()) NameHugePages(*volumes, spec->huge_pages);
  co_return spec;
}

class Storage : public ContainerStorage {
 public:
  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(SandboxStorage& sandbox,
                                                           ContainerRequest request) override {
    auto work = PrepareAll(&sandbox, std::move(request));
    auto done = Uncancelled(std::move(work));
    co_return co_await std::move(done);
  }

  Co<absl::Status> Release(SandboxStorage& sandbox, std::string container_id) override {
    const absl::Status valid = ValidateId(container_id, "container_id");
    MAGNETAR_CO_RETURN_IF_ERROR(valid);
    auto work = ReleaseSteps(&sandbox, std::move(container_id));
    auto done = Uncancelled(std::move(work));
    co_return co_await std::move(done);
  }

  absl::Status UnmountAll(const std::string& shared_directory) override {
    return UnshareAll(shared_directory);
  }

 private:
  // A coroutine of its own that the caller's cancellation does not reach.
  template <typename T>
  static Co<T> Uncancelled(Co<T> work) {
    auto executor = co_await asio::this_coro::executor;
    auto token = asio::bind_cancellation_slot(asio::cancellation_slot(), asio::use_awaitable);
    auto done = asio::co_spawn(executor, std::move(work), token);
    co_return co_await std::move(done);
  }

  Co<absl::StatusOr<agent::v1::PreparedContainer>> PrepareAll(SandboxStorage* sandbox,
                                                              ContainerRequest request) {
    const std::string& id = request.container_id;
    const absl::Status valid = ValidateId(id, "container_id");
    MAGNETAR_CO_RETURN_IF_ERROR(valid);
    absl::StatusOr<RootfsPlan> plan = PlanRootfs(request.rootfs);
    if (!plan.ok()) co_return plan.status();
    const bool disk = plan->kind == RootfsPlan::Kind::kDisk;

    SpecRequest rules;
    rules.sandbox_id = sandbox->sandbox_id;
    rules.container_id = id;
    rules.guest_rootfs = absl::StrCat(disk ? kGuestContainers : kGuestShared, id, "/", kRootfs);
    rules.guest_mounts = absl::StrCat(kGuestShared, id);
    rules.guest_hostname = request.guest_hostname;
    rules.guest_hosts = request.guest_hosts;
    rules.guest_resolv_conf = request.guest_resolv_conf;
    rules.guest_shm = request.guest_shm;
    rules.pod_shares_pids = request.pod_shares_pids;
    rules.devices = std::move(request.devices);
    rules.huge_page_limits = std::move(request.huge_page_limits);
    agent::v1::PreparedContainer prepared;
    if (!request.pid_namespace_of.empty()) {
      rules.target_pid_namespace = absl::StrCat(kGuestContainers, id, "/pid-namespace");
      prepared.set_pid_namespace_of(request.pid_namespace_of);
    }
    auto rewrite = Rewrite(sandbox, std::move(request.spec_json), std::move(rules), &prepared);
    absl::StatusOr<RewrittenSpec> spec = co_await std::move(rewrite);
    if (!spec.ok()) co_return spec.status();

    if (HasSteps(*sandbox, id)) {
      auto earlier = ReleaseSteps(sandbox, id);
      const absl::Status released = co_await std::move(earlier);
      if (!released.ok()) co_return Annotate(released, "an earlier attempt");
    }

    auto build = Build(sandbox, id, *std::move(plan), std::move(spec->devices),
                       std::move(spec->binds), &prepared);
    const absl::Status built = co_await std::move(build);
    if (!built.ok()) {
      auto rollback = ReleaseSteps(sandbox, id);
      const absl::Status undone = co_await std::move(rollback);
      if (!undone.ok()) {
        Log(LogLevel::kError, "cannot undo a container's storage",
            {{"sandbox", sandbox->sandbox_id}, {"container", id}, {"error", undone.ToString()}});
      }
      co_return built;
    }
    for (const HugePages& wanted : spec->huge_pages) {
      agent::v1::HugePages* pages = prepared.add_huge_pages();
      pages->set_page_size(wanted.page_size);
      pages->set_bytes(wanted.bytes);
      pages->set_field(wanted.field);
    }
    LogDropped(sandbox->sandbox_id, spec->dropped);
    prepared.set_spec(std::move(spec->json));
    co_return prepared;
  }

  // Once for each field: a node's pods all look alike.
  void LogDropped(const std::string& sandbox_id, const std::vector<std::string>& dropped) {
    const std::lock_guard lock(mutex_);
    for (const std::string& field : dropped) {
      if (!logged_.insert(field).second) continue;
      Log(LogLevel::kWarn, "left out of container specs: a VM cannot have it",
          {{"sandbox", sandbox_id}, {"field", field}});
    }
  }

  std::mutex mutex_;  // sandboxes have strands of their own
  std::set<std::string> logged_;
};

}  // namespace

std::unique_ptr<ContainerStorage> ContainerStorage::Create() { return std::make_unique<Storage>(); }

}  // namespace magnetar::daemon
