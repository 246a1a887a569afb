#include "src/daemon/storage/block_volume.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <boost/asio/this_coro.hpp>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/status.h"
#include "src/daemon/storage/disk_image.h"

namespace magnetar::daemon {
namespace {

// One attaches or detaches at a time: whether a disk is there shows in the steps of others.
Co<AsyncMutex::Guard> TakeTurn(SandboxStorage* sandbox) {
  auto executor = co_await asio::this_coro::executor;
  if (sandbox->volumes == nullptr) sandbox->volumes = std::make_shared<AsyncMutex>(executor);
  auto lock = sandbox->volumes->Lock();
  co_return co_await std::move(lock);
}

bool IsOf(const StorageStep& step, StorageStep::Kind kind, const std::string& serial) {
  return step.kind == kind && step.serial == serial;
}

// Whether a container uses the disk, and it is there.
bool InUse(const std::vector<StorageStep>& steps, const std::string& serial) {
  return std::any_of(steps.begin(), steps.end(), [&serial](const StorageStep& step) {
    return IsOf(step, StorageStep::Kind::kVolumeUse, serial);
  });
}

std::string Numbers(dev_t number) { return absl::StrCat(::major(number), ":", ::minor(number)); }

absl::Status CheckDevice(int fd, const BlockDevice& device) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) return ErrnoStatus(errno, "stat");
  if (!S_ISBLK(st.st_mode)) return absl::FailedPreconditionError("it is no block device");
  if (st.st_rdev != device.number) {
    return absl::FailedPreconditionError(absl::StrCat("it is device ", Numbers(st.st_rdev),
                                                      " and was ", Numbers(device.number),
                                                      " when the container was made"));
  }
  uint64_t bytes = 0;
  if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return ErrnoStatus(errno, "size");
  if (bytes == 0) {
    return absl::FailedPreconditionError(
        "it has no contents, as a loop device without a file has none");
  }
  return absl::OkStatus();
}

// To be followed by the step itself.
absl::Status Journal(SandboxStorage* sandbox, StorageStep::Kind kind,
                     const std::string& container_id, const BlockDevice& device,
                     const std::string& serial) {
  StorageStep step;
  step.kind = kind;
  step.container_id = container_id;
  step.source = device.host_path;
  step.serial = serial;
  return Annotate(sandbox->journal_add(step), "journal");
}

Co<absl::Status> AttachNew(SandboxStorage* sandbox, std::string container_id, BlockDevice device,
                           std::string serial) {
  const std::vector<StorageStep> steps = sandbox->journal_steps();
  const bool begun = std::any_of(steps.begin(), steps.end(), [&serial](const StorageStep& step) {
    return IsOf(step, StorageStep::Kind::kVolumeDisk, serial);
  });
  if (begun) {
    // By a daemon that ended meanwhile: nobody uses it, and it may or may not be there.
    auto detach = DetachDisk(sandbox, serial, device.host_path);
    const absl::Status detached = co_await std::move(detach);
    MAGNETAR_CO_RETURN_IF_ERROR(detached);
  }
  auto open = RunBlocking(*sandbox->blocking, [device] { return OpenBlockVolume(device); });
  const absl::StatusOr<UniqueFd> opened = co_await std::move(open);
  if (!opened.ok()) co_return opened.status();
  if (sandbox->vm == nullptr) co_return absl::UnavailableError("the VM is gone");

  const auto kind = StorageStep::Kind::kVolumeDisk;
  MAGNETAR_CO_RETURN_IF_ERROR(Journal(sandbox, kind, container_id, device, serial));
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("storage.step.before"));
  vmm::DiskSpec disk;
  disk.serial = serial;
  disk.fd = opened->get();
  disk.read_only = device.read_only();
  auto add = sandbox->vm->AddDisk(std::move(disk));
  const absl::Status added = co_await std::move(add);
  if (!added.ok()) co_return Annotate(added, absl::StrCat("attach ", device.host_path));
  co_return Failpoint("storage.step.after");
}

// The serial of the disk that the container gets.
Co<absl::StatusOr<std::string>> Attach(SandboxStorage* sandbox, std::string container_id,
                                       BlockDevice device) {
  auto take = TakeTurn(sandbox);
  const AsyncMutex::Guard turn = co_await std::move(take);
  const std::vector<StorageStep> steps = sandbox->journal_steps();
  const std::string writable = BlockVolumeSerial(device.number, /*read_only=*/false);
  const std::string read_only = BlockVolumeSerial(device.number, /*read_only=*/true);
  // Two disks of one device would not see each other's changes.
  std::string serial = writable;
  if (device.read_only() && !InUse(steps, writable)) serial = read_only;
  if (!device.read_only() && InUse(steps, read_only)) {
    co_return absl::FailedPreconditionError(
        absl::StrCat(device.host_path,
                     ": another container of the pod has it read-only, which its VM is held to"));
  }
  if (!InUse(steps, serial)) {
    auto attach = AttachNew(sandbox, container_id, device, serial);
    const absl::Status attached = co_await std::move(attach);
    MAGNETAR_CO_RETURN_IF_ERROR(attached);
  }
  const auto kind = StorageStep::Kind::kVolumeUse;
  const bool used = std::any_of(steps.begin(), steps.end(), [&](const StorageStep& step) {
    return IsOf(step, kind, serial) && step.container_id == container_id;
  });
  if (!used) {
    MAGNETAR_CO_RETURN_IF_ERROR(Journal(sandbox, kind, container_id, device, serial));
  }
  co_return serial;
}

}  // namespace

Co<absl::Status> DetachDisk(SandboxStorage* sandbox, std::string serial, std::string source) {
  if (sandbox->vm == nullptr) co_return absl::OkStatus();
  auto remove = sandbox->vm->RemoveDisk(std::move(serial));
  const absl::Status removed = co_await std::move(remove);
  // NOT_FOUND: it was never attached. A VMM that cannot be reached may still hold it.
  if (absl::IsNotFound(removed)) co_return absl::OkStatus();
  co_return Annotate(removed, absl::StrCat("detach ", source));
}

std::string BlockVolumeSerial(dev_t number, bool read_only) {
  return absl::StrCat("mgr-b", ::major(number), ".", ::minor(number), read_only ? "-ro" : "");
}

absl::StatusOr<UniqueFd> OpenBlockVolume(const BlockDevice& device) {
  absl::StatusOr<UniqueFd> opened = OpenDiskImage(device.host_path, device.read_only());
  absl::Status status = opened.status();
  if (status.ok()) status = Annotate(CheckDevice(opened->get(), device), device.host_path);
  if (status.ok()) return opened;
  // A device without a driver; nothing that containerd asked for is unknown.
  if (absl::IsNotFound(status)) return absl::FailedPreconditionError(status.message());
  return status;
}

Co<absl::Status> AttachBlockVolumes(SandboxStorage* sandbox, std::string container_id,
                                    std::vector<BlockDevice> devices,
                                    agent::v1::PreparedContainer* prepared) {
  // What one entry has writable, another may have read-only, but not the other way round.
  std::stable_partition(devices.begin(), devices.end(),
                        [](const BlockDevice& device) { return !device.read_only(); });
  for (const BlockDevice& device : devices) {
    auto attach = Attach(sandbox, container_id, device);
    const absl::StatusOr<std::string> serial = co_await std::move(attach);
    if (!serial.ok()) co_return Annotate(serial.status(), device.name);
    agent::v1::Storage* storage = prepared->add_storages();
    storage->set_kind(agent::v1::Storage::BLOCK_DEVICE);
    storage->set_serial(*serial);
    storage->set_device_index(static_cast<uint32_t>(device.index));
    storage->set_device_access(device.access);
    storage->set_read_only(device.read_only());
  }
  co_return absl::OkStatus();
}

Co<absl::Status> ReleaseBlockVolume(SandboxStorage* sandbox, StorageStep step) {
  auto take = TakeTurn(sandbox);
  const AsyncMutex::Guard turn = co_await std::move(take);
  const std::vector<StorageStep> steps = sandbox->journal_steps();
  const bool others = std::any_of(steps.begin(), steps.end(), [&step](const StorageStep& other) {
    return other.serial == step.serial && other.container_id != step.container_id;
  });
  if (!others) {
    // From here on nobody uses it, though it may be there for a while: whoever wants it anew has to
    // take it away first.
    if (step.kind == StorageStep::Kind::kVolumeUse) {
      StorageStep disk = step;
      disk.kind = StorageStep::Kind::kVolumeDisk;
      const bool begun = std::any_of(steps.begin(), steps.end(), [&disk](const StorageStep& other) {
        return IsOf(other, disk.kind, disk.serial);
      });
      if (!begun) MAGNETAR_CO_RETURN_IF_ERROR(Annotate(sandbox->journal_add(disk), "journal"));
      MAGNETAR_CO_RETURN_IF_ERROR(Annotate(sandbox->journal_remove(step), "journal"));
      step = disk;
    }
    auto detach = DetachDisk(sandbox, step.serial, step.source);
    const absl::Status detached = co_await std::move(detach);
    MAGNETAR_CO_RETURN_IF_ERROR(detached);
  }
  co_return Annotate(sandbox->journal_remove(step), "journal");
}

}  // namespace magnetar::daemon
