#include "vmm/qemu/vm.h"

#include <fcntl.h>

#include <boost/asio/this_coro.hpp>
#include <cerrno>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/event.h"
#include "magnetar/status.h"
#include "vmm/qemu/command_line.h"
#include "vmm/qemu/disk_file.h"
#include "vmm/qemu/qmp.h"
#include "vmm/qemu/qmp_wire.h"
#include "vmm/qemu/resize.h"

namespace magnetar::vmm::qemu {
namespace {

using nlohmann::json;

// QEMU answers commands at once; more means that it hangs.
constexpr std::chrono::seconds kCommandTimeout{10};
// Of what comes between the connection and the first OnEvent.
constexpr size_t kMaxEarlyEvents = 64;
// For the guest to let go of a device.
constexpr std::chrono::seconds kUnplugTimeout{10};

absl::StatusOr<UniqueFd> Duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.ok()) return ErrnoStatus(errno, absl::StrCat("duplicate descriptor ", fd));
  return copy;
}

absl::StatusOr<UniqueFd> OpenVhostNet() {
  UniqueFd device(::open("/dev/vhost-net", O_RDWR | O_CLOEXEC));
  if (!device.ok()) return ErrnoStatus(errno, "/dev/vhost-net");
  return device;
}

// The failure of an operation, and that of taking back its first half.
absl::Status WithUndo(const absl::Status& failed, const absl::Status& undone) {
  if (undone.ok()) return failed;
  return absl::Status(
      failed.code(), absl::StrCat(failed.message(), "; and undoing it failed: ", undone.message()));
}

// What a device's removal has come to.
struct Removal {
  explicit Removal(const asio::any_io_executor& executor) : changed(executor) {}
  magnetar::Event changed;
  std::optional<absl::Status> result;
};

// State that the QMP handlers share with the Vm, and outlive it in.
struct Shared {
  explicit Shared(const asio::any_io_executor& e) : executor(e) {}

  void Finish(const std::string& device, const absl::Status& status) {
    if (const auto it = removals.find(device); it != removals.end()) {
      it->second->result = status;
      it->second->changed.NotifyAll();
    }
  }

  void Emit(vmm::Event::Kind kind, std::string detail) {
    vmm::Event event{.kind = kind, .detail = std::move(detail)};
    if (!handler) {
      // Until somebody listens; a connection ends once, and that must not be among what is lost.
      if (early.size() < kMaxEarlyEvents || kind == vmm::Event::Kind::kClosed) {
        early.push_back(std::move(event));
      }
      return;
    }
    // A copy: it may let go of the Vm, and with it of itself.
    const auto call = handler;
    call(event);
  }

  void SetHandler(std::function<void(const vmm::Event&)> next) {
    handler = std::move(next);
    if (!handler) return;
    const auto call = handler;
    for (const vmm::Event& event : std::exchange(early, {})) call(event);
  }

  void OnQmpEvent(const std::string& name, const json& data) {
    if (name == "DEVICE_DELETED") {
      const std::string device = StringAt(data, "device");
      if (device.empty()) return;  // a part of one
      Finish(device, absl::OkStatus());
      Emit(vmm::Event::Kind::kDeviceDeleted, device);
    } else if (name == "DEVICE_UNPLUG_GUEST_ERROR") {
      const std::string device = StringAt(data, "device");
      Finish(device, absl::FailedPreconditionError("the guest keeps it"));
    } else if (name == "MEMORY_DEVICE_SIZE_CHANGE") {
      Emit(vmm::Event::Kind::kMemoryChanged, StringAt(data, "id"));
    } else if (name == "SHUTDOWN") {
      Emit(vmm::Event::Kind::kShutdown, StringAt(data, "reason"));
    } else if (name == "RESET") {
      Emit(vmm::Event::Kind::kReset, StringAt(data, "reason"));
    } else if (name == "GUEST_PANICKED") {
      Emit(vmm::Event::Kind::kGuestPanic, StringAt(data, "action"));
    }
  }

  void OnClosed() {
    for (auto& [device, removal] : removals) {
      removal->result = absl::UnavailableError("the VM is gone");
      removal->changed.NotifyAll();
    }
    Emit(vmm::Event::Kind::kClosed, "");
  }

  asio::any_io_executor executor;
  std::map<std::string, std::shared_ptr<Removal>> removals;
  std::function<void(const vmm::Event&)> handler;
  std::vector<vmm::Event> early;
};

class QemuVm : public Vm {
 public:
  QemuVm(std::shared_ptr<QmpClient> qmp, std::shared_ptr<Shared> shared, VmOptions options)
      : qmp_(std::move(qmp)), shared_(std::move(shared)), options_(options) {}

  ~QemuVm() override {
    shared_->SetHandler(nullptr);
    qmp_->Close();
  }

  Co<absl::Status> AddDisk(DiskSpec disk) override {
    auto id = DiskId(disk.serial);
    if (!id.ok()) co_return id.status();
    auto driver = BlockDriverOf(disk.fd);
    if (!driver.ok()) co_return driver.status();
    auto sizes = BlockSizesOf(disk.fd);
    if (!sizes.ok()) co_return sizes.status();
    auto fd = DescriptorFor(disk.fd, disk.read_only);
    if (!fd.ok()) co_return fd.status();

    json request = {{"opaque", *id}};
    auto add_fd = qmp_->Execute("add-fd", std::move(request), *std::move(fd));
    absl::StatusOr<json> added = co_await std::move(add_fd);
    if (!added.ok()) co_return added.status();
    const uint64_t fdset = NumberAt(*added, "fdset-id");

    json node = {{"driver", "raw"},
                 {"node-name", *id},
                 {"read-only", disk.read_only},
                 {"discard", "unmap"},
                 {"file",
                  {{"driver", *driver},
                   {"filename", absl::StrCat("/dev/fdset/", fdset)},
                   {"read-only", disk.read_only},
                   {"discard", "unmap"}}}};
    auto add_node = Run("blockdev-add", std::move(node));
    absl::Status status = co_await std::move(add_node);
    if (status.ok()) {
      json device = {{"driver", "scsi-hd"},
                     {"id", *id},
                     {"bus", "scsi0.0"},
                     {"drive", *id},
                     {"serial", disk.serial},
                     // The guest's error; by itself QEMU stops a guest whose disk is full.
                     {"rerror", "report"},
                     {"werror", "report"},
                     {"logical_block_size", sizes->logical},
                     {"physical_block_size", sizes->physical}};
      auto add_device = Run("device_add", std::move(device));
      status = co_await std::move(add_device);
    }
    if (!status.ok()) {
      auto undo = RemoveBackend(*id);
      const absl::Status undone = co_await std::move(undo);
      status = WithUndo(status, undone);
    }
    co_return status;
  }

  Co<absl::Status> RemoveDisk(std::string serial) override {
    auto id = DiskId(serial);
    if (!id.ok()) co_return id.status();
    auto unplug = Unplug(*id);
    absl::Status unplugged = co_await std::move(unplug);
    // NOT_FOUND: an earlier attempt got this far.
    if (!unplugged.ok() && !absl::IsNotFound(unplugged)) co_return unplugged;
    auto remove = RemoveBackend(*id);
    absl::Status removed = co_await std::move(remove);
    if (!unplugged.ok() && absl::IsNotFound(removed)) co_return unplugged;
    co_return absl::IsNotFound(removed) ? absl::OkStatus() : removed;
  }

  Co<absl::Status> AddNic(NicSpec nic) override {
    auto index = NicIndex(nic.id);
    if (!index.ok()) co_return index.status();
    auto fd = Duplicate(nic.tap_fd);
    if (!fd.ok()) co_return fd.status();
    const std::string backend = absl::StrCat(nic.id, "-tap");

    json name = {{"fdname", backend}};
    auto get_fd = qmp_->Execute("getfd", std::move(name), *std::move(fd));
    absl::StatusOr<json> got = co_await std::move(get_fd);
    if (!got.ok()) co_return got.status();

    json netdev = {{"type", "tap"}, {"id", backend}, {"fd", backend}};
    if (options_.vhost_net) {
      const std::string vhost = absl::StrCat(nic.id, "-vhost");
      auto device = OpenVhostNet();
      absl::Status passed = device.status();
      if (device.ok()) {
        json vhost_name = {{"fdname", vhost}};
        auto pass = qmp_->Execute("getfd", std::move(vhost_name), *std::move(device));
        const absl::StatusOr<json> answer = co_await std::move(pass);
        passed = answer.status();
      }
      if (!passed.ok()) {
        auto forget = Forget(backend);
        const absl::Status forgotten = co_await std::move(forget);
        co_return WithUndo(passed, forgotten);
      }
      netdev["vhost"] = true;
      netdev["vhostfd"] = vhost;
    } else {
      netdev["vhost"] = false;
    }
    auto add_netdev = Run("netdev_add", std::move(netdev));
    absl::Status status = co_await std::move(add_netdev);
    if (!status.ok()) {
      auto forget = Forget(backend);
      absl::Status forgotten = co_await std::move(forget);
      if (options_.vhost_net) {
        auto forget_vhost = Forget(absl::StrCat(nic.id, "-vhost"));
        const absl::Status vhost_forgotten = co_await std::move(forget_vhost);
        forgotten.Update(vhost_forgotten);
      }
      co_return WithUndo(status, forgotten);
    }
    json device = {{"driver", "virtio-net-pci"},
                   {"id", nic.id},
                   {"netdev", backend},
                   {"bus", absl::StrCat("nicport", *index)},
                   {"mac", nic.mac},
                   {"host_mtu", nic.mtu},
                   {"romfile", ""}};
    auto add_device = Run("device_add", std::move(device));
    status = co_await std::move(add_device);
    if (!status.ok()) {
      json netdev_id = {{"id", backend}};
      auto undo = Run("netdev_del", std::move(netdev_id));
      const absl::Status undone = co_await std::move(undo);
      status = WithUndo(status, undone);
    }
    co_return status;
  }

  Co<absl::Status> RemoveNic(std::string id) override {
    auto index = NicIndex(id);
    if (!index.ok()) co_return index.status();
    auto unplug = Unplug(id);
    absl::Status unplugged = co_await std::move(unplug);
    // Also of a device that the guest keeps: what the NIC led to is the guest's no longer.
    json netdev = {{"id", absl::StrCat(id, "-tap")}};
    auto remove = Run("netdev_del", std::move(netdev));
    const absl::Status removed = co_await std::move(remove);
    // NOT_FOUND: an earlier attempt got this far.
    if (!removed.ok() && !absl::IsNotFound(removed)) co_return removed;
    if (!absl::IsNotFound(unplugged)) co_return unplugged;
    // Whoever added it may have died before these were used; a macvtap goes on feeding one that is
    // open. QEMU has one class of error for all, and mostly there are none.
    auto forget = Forget(absl::StrCat(id, "-tap"));
    (void)co_await std::move(forget);
    auto forget_vhost = Forget(absl::StrCat(id, "-vhost"));
    (void)co_await std::move(forget_vhost);
    co_return unplugged;
  }

  Co<absl::StatusOr<Size>> GetSize() override { return QuerySize(qmp_); }
  Co<absl::Status> Resize(uint32_t vcpus, uint64_t memory_bytes) override {
    return ResizeVm(qmp_, vcpus, memory_bytes);
  }
  Co<absl::Status> Save(CloneSource) override { co_return absl::UnimplementedError("QEMU: save"); }

  Co<absl::Status> Pause() override { return Run("stop", json()); }
  Co<absl::Status> Resume() override { return Run("cont", json()); }

  Co<absl::Status> Quit() override {
    auto quit = Run("quit", json());
    absl::Status status = co_await std::move(quit);
    // It may be gone before its answer is out.
    if (absl::IsUnavailable(status)) co_return absl::OkStatus();
    co_return status;
  }

  void OnEvent(std::function<void(const vmm::Event&)> handler) override {
    shared_->SetHandler(std::move(handler));
  }

 private:
  Co<absl::Status> Run(std::string command, json arguments) {
    auto execute = qmp_->Execute(std::move(command), std::move(arguments), UniqueFd());
    absl::StatusOr<json> reply = co_await std::move(execute);
    co_return reply.status();
  }

  // Closes a descriptor that was passed and not used.
  Co<absl::Status> Forget(std::string fdname) {
    json name = {{"fdname", fdname}};
    return Run("closefd", std::move(name));
  }

  // Completes at DEVICE_DELETED.
  Co<absl::Status> Unplug(std::string id) {
    auto shared = shared_;
    auto removal = std::make_shared<Removal>(shared->executor);
    shared->removals[id] = removal;
    // Also when the coroutine is cancelled.
    absl::Cleanup forget = [shared, id] { shared->removals.erase(id); };
    json device = {{"id", id}};
    auto remove = Run("device_del", std::move(device));
    absl::Status status = co_await std::move(remove);
    const auto deadline = magnetar::Event::Clock::now() + kUnplugTimeout;
    while (status.ok() && !removal->result.has_value()) {
      if (magnetar::Event::Clock::now() >= deadline) {
        status = absl::DeadlineExceededError("the guest does not let go of it");
        break;
      }
      auto wait = removal->changed.WaitUntil(deadline);
      co_await std::move(wait);
      const auto cancellation = co_await asio::this_coro::cancellation_state;
      if (Cancelled(cancellation)) status = absl::CancelledError("cancelled");
    }
    if (status.ok()) status = *removal->result;
    co_return Annotate(status, absl::StrCat("unplug ", id));
  }

  // The node, and the descriptor set that has its name. NOT_FOUND: neither exists.
  Co<absl::Status> RemoveBackend(std::string id) {
    auto query = qmp_->Execute("query-fdsets", json(), UniqueFd());
    absl::StatusOr<json> sets = co_await std::move(query);
    if (!sets.ok()) co_return sets.status();
    std::optional<uint64_t> fdset;
    for (const json& set : *sets) {
      const auto fds = set.is_object() ? set.find("fds") : set.end();
      if (!set.is_object() || fds == set.end()) continue;
      for (const json& fd : *fds) {
        if (StringAt(fd, "opaque") == id) fdset = NumberAt(set, "fdset-id");
      }
    }
    json node = {{"node-name", id}};
    auto remove_node = Run("blockdev-del", std::move(node));
    const absl::Status removed = co_await std::move(remove_node);
    if (!removed.ok()) {
      // QEMU has one class of error for a node that is in use and for one that is not there.
      auto has = HasNode(id);
      const absl::StatusOr<bool> there = co_await std::move(has);
      if (!there.ok() || *there) co_return removed;
      if (!fdset.has_value()) co_return absl::NotFoundError(absl::StrCat("no disk ", id));
    }
    if (!fdset.has_value()) co_return absl::OkStatus();
    json set = {{"fdset-id", *fdset}};
    auto remove_set = Run("remove-fd", std::move(set));
    co_return co_await std::move(remove_set);
  }

  Co<absl::StatusOr<bool>> HasNode(std::string id) {
    json flat = {{"flat", true}};
    auto query = qmp_->Execute("query-named-block-nodes", std::move(flat), UniqueFd());
    const absl::StatusOr<json> nodes = co_await std::move(query);
    if (!nodes.ok()) co_return nodes.status();
    for (const json& node : *nodes) {
      if (StringAt(node, "node-name") == id) co_return true;
    }
    co_return false;
  }

  std::shared_ptr<QmpClient> qmp_;
  std::shared_ptr<Shared> shared_;
  const VmOptions options_;
};

}  // namespace

Co<absl::StatusOr<std::unique_ptr<Vm>>> AttachVm(std::string qmp_path, VmOptions options) {
  auto executor = co_await asio::this_coro::executor;
  auto shared = std::make_shared<Shared>(executor);
  QmpClient::Handlers handlers;
  handlers.event = [shared](const std::string& name, const json& data) {
    shared->OnQmpEvent(name, data);
  };
  handlers.closed = [shared] { shared->OnClosed(); };
  auto connect = QmpClient::Connect(std::move(qmp_path), kCommandTimeout, std::move(handlers));
  auto qmp = co_await std::move(connect);
  if (!qmp.ok()) co_return qmp.status();
  co_return std::make_unique<QemuVm>(*std::move(qmp), std::move(shared), options);
}

}  // namespace magnetar::vmm::qemu
