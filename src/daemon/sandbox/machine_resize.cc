// A running VM that is made larger or smaller.
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/machine.h"
#include "src/daemon/sandbox/sizes.h"

namespace magnetar::daemon {
namespace {

// The guest waits 10 s for its processors.
constexpr std::chrono::seconds kGuestLimit{15};

constexpr char kFeature[] = "resize";

}  // namespace

Co<absl::Status> Machine::Resize() {
  auto self = shared_from_this();
  auto lock = resizing_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (over()) co_return absl::UnavailableError("the VM has ended");
  const MachineSize wanted = WantedSize(record_->Get(), env_->config);
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) {
    record.wanted_vcpus = wanted.vcpus;
    record.wanted_memory_bytes = wanted.memory_bytes;
  }));
  auto limit = LimitCgroup();
  absl::Status status = co_await std::move(limit);
  if (!status.ok()) co_return status;
  const Record now = record_->Get();
  if (now.vcpus == wanted.vcpus && now.memory_bytes == wanted.memory_bytes) {
    co_return absl::OkStatus();
  }
  const auto vm = vm_;
  const auto& features = now.agent_features;
  if (vm == nullptr || vm_lost_ || agent_ == nullptr) {
    co_return absl::UnavailableError("resize: the guest or its VMM cannot be reached");
  }
  if (std::find(features.begin(), features.end(), kFeature) == features.end()) {
    co_return absl::FailedPreconditionError("resize: the pod's guest image is too old for it");
  }
  Log(LogLevel::kInfo, "resizing",
      {{"sandbox", id_},
       {"vcpus", absl::StrCat(now.vcpus, " to ", wanted.vcpus)},
       {"memory_mib", absl::StrCat(now.memory_bytes >> 20, " to ", wanted.memory_bytes >> 20)}});
  auto resize = vm->Resize(wanted.vcpus, wanted.memory_bytes);
  status = co_await std::move(resize);
  if (!status.ok()) co_return Annotate(status, "resize the VM");
  auto settle = SettleLocked();
  status = co_await std::move(settle);
  co_return status;
}

void Machine::BeginResize() {
  if (over() || !serving_) return;
  asio::co_spawn(strand_, ResizeAlone(), asio::detached);
}

Co<void> Machine::ResizeAlone() {
  auto self = shared_from_this();
  auto resize = Resize();
  const absl::Status status = co_await std::move(resize);
  if (status.ok() || over()) co_return;
  Log(LogLevel::kWarn, "the VM does not have the size that its containers want",
      {{"sandbox", id_}, {"error", status.ToString()}});
}

Co<void> Machine::Settle() {
  auto self = shared_from_this();
  auto lock = resizing_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (over()) co_return;
  auto settle = SettleLocked();
  const absl::Status status = co_await std::move(settle);
  if (status.ok() || over()) co_return;
  Log(LogLevel::kWarn, "a resize that the guest has not followed",
      {{"sandbox", id_}, {"error", status.ToString()}});
}

// What the guest has by now is noted, and its containers and the host's cgroup get that.
Co<absl::Status> Machine::SettleLocked() {
  const auto vm = vm_;
  const auto agent = agent_;
  if (vm == nullptr || vm_lost_ || agent == nullptr) {
    co_return absl::UnavailableError("the guest or its VMM cannot be reached");
  }
  auto query = vm->GetSize();
  const absl::StatusOr<vmm::Size> size = co_await std::move(query);
  if (!size.ok()) co_return Annotate(size.status(), "ask the VMM for the VM's size");
  const Record before = record_->Get();
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) {
    record.vcpus = size->vcpus;
    record.memory_bytes = size->memory_bytes;
  }));
  if (before.memory_bytes != size->memory_bytes &&
      size->memory_bytes == before.wanted_memory_bytes) {
    Log(LogLevel::kInfo, "resized",
        {{"sandbox", id_}, {"memory_mib", absl::StrCat(size->memory_bytes >> 20)}});
  }
  agent::v1::ResizeRequest request;
  request.set_vcpus(size->vcpus);
  request.set_memory(std::max(size->memory_bytes, before.wanted_memory_bytes) >
                     size->boot_memory_bytes);
  if (before.wanted_memory_bytes != 0 && size->memory_bytes > before.wanted_memory_bytes) {
    request.set_leaving_bytes(size->memory_bytes - before.wanted_memory_bytes);
  }
  auto resize = agent->Resize(std::move(request), kGuestLimit);
  const absl::Status status = co_await std::move(resize);
  if (!status.ok()) co_return Annotate(status, "tell the guest of its size");
  if (before.memory_bytes == size->memory_bytes) co_return absl::OkStatus();
  auto limit = LimitCgroup();
  const absl::Status limited = co_await std::move(limit);
  co_return limited;
}

Co<absl::Status> Machine::LimitCgroup() {
  const Record now = record_->Get();
  const SandboxLimits limits = LimitsOf(now, env_->config);
  auto blocking = RunBlocking(*env_->blocking, [env = env_, now, limits] {
    return env->cgroups->Update(now.cgroup_parent, now.id, limits);
  });
  const absl::Status status = co_await std::move(blocking);
  co_return Annotate(status, "limit the sandbox's cgroup");
}

}  // namespace magnetar::daemon
