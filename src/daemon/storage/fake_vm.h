#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "magnetar/unique_fd.h"
#include "vmm/vmm.h"

namespace magnetar::daemon {

// A VM that takes disks and remembers them, for tests of what stands on storage. It holds
// a duplicate of each disk's descriptor, as a VMM does.
class FakeVm : public vmm::Vm {
 public:
  struct Disk {
    UniqueFd fd;
    bool read_only = false;
  };

  std::map<std::string, Disk> disks;  // by serial
  absl::Status add_disk_status;       // answered, after which nothing was attached, unless OK
  absl::Status remove_disk_status;

  Co<absl::Status> AddDisk(vmm::DiskSpec disk) override {
    if (!add_disk_status.ok()) co_return add_disk_status;
    disks[disk.serial] = {UniqueFd(::fcntl(disk.fd, F_DUPFD_CLOEXEC, 0)), disk.read_only};
    co_return absl::OkStatus();
  }
  Co<absl::Status> RemoveDisk(std::string serial) override {
    if (!remove_disk_status.ok()) co_return remove_disk_status;
    if (disks.erase(serial) == 0) co_return absl::NotFoundError(serial);
    co_return absl::OkStatus();
  }
  Co<absl::Status> AddNic(vmm::NicSpec) override { co_return absl::OkStatus(); }
  Co<absl::Status> RemoveNic(std::string) override { co_return absl::OkStatus(); }
  Co<absl::StatusOr<vmm::Size>> GetSize() override { co_return vmm::Size(); }
  Co<absl::Status> Resize(uint32_t, uint64_t) override { co_return absl::OkStatus(); }
  Co<absl::Status> Pause() override { co_return absl::OkStatus(); }
  Co<absl::Status> Resume() override { co_return absl::OkStatus(); }
  Co<absl::Status> Save(vmm::CloneSource) override { co_return absl::OkStatus(); }
  Co<absl::Status> Quit() override { co_return absl::OkStatus(); }
  void OnEvent(std::function<void(const vmm::Event&)>) override {}
};

}  // namespace magnetar::daemon
