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
// After which a guest that had no memory to spare, or could not be asked, is asked again: at first,
// and at most.
constexpr std::chrono::seconds kFirstAskPause{2};
constexpr std::chrono::seconds kLongestAskPause{60};
// What a guest can spare changes all the time. Less than this is not worth a request.
constexpr uint64_t kWorthwhile = 16 << 20;

}  // namespace

Co<absl::StatusOr<uint64_t>> Machine::MemoryLimitAbove() {
  auto blocking = RunBlocking(*env_->blocking, [env = env_, now = record_->Get()] {
    return env->cgroups->MemoryLimitAbove(now.cgroup_parent, now.id);
  });
  absl::StatusOr<uint64_t> above = co_await std::move(blocking);
  if (!above.ok()) co_return Annotate(above.status(), "read the memory limit of the pod's cgroup");
  co_return above;
}

// Whatever brought it here (limits that changed, memory that the guest took, a connection that is
// back), it looks at what is wanted and at what there is, and does what is missing.
Co<absl::Status> Machine::Resize() {
  auto self = shared_from_this();
  auto lock = resizing_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  resize_waits_ = false;
  if (over()) co_return absl::UnavailableError("the VM has ended");
  const Record before = record_->Get();
  auto read = MemoryLimitAbove();
  const absl::StatusOr<uint64_t> above = co_await std::move(read);
  if (!above.ok()) co_return above.status();
  const MachineSize wanted = WantedSize(before, env_->config, *above);
  const bool needed =
      before.resizing || before.vcpus != wanted.vcpus || before.memory_bytes != wanted.memory_bytes;
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) {
    record.wanted_vcpus = wanted.vcpus;
    record.wanted_memory_bytes = wanted.memory_bytes;
    record.granted_memory_bytes = std::max({wanted.memory_bytes, record.memory_bytes,
                                            record.resizing ? record.granted_memory_bytes : 0});
    record.resizing = needed;
  }));
  auto limit = LimitCgroup();
  absl::Status status = co_await std::move(limit);
  if (!status.ok() || !needed) co_return status;
  auto apply = ApplySize(wanted);
  status = co_await std::move(apply);
  if (!status.ok() && !over()) AskAgain();
  co_return status;
}

Co<absl::Status> Machine::ApplySize(MachineSize wanted) {
  const auto vm = vm_;
  if (vm == nullptr || vm_lost_ || agent_ == nullptr) {
    co_return absl::UnavailableError("resize: the guest or its VMM cannot be reached");
  }
  auto query = vm->GetSize();
  absl::StatusOr<vmm::Size> size = co_await std::move(query);
  if (!size.ok()) co_return Annotate(size.status(), "ask the VMM for the VM's size");
  auto find = LeastMemory(*size, wanted.memory_bytes);
  const absl::StatusOr<uint64_t> found = co_await std::move(find);
  // Processors do not wait for a guest that does not say.
  const uint64_t least = found.ok() ? *found : size->requested_memory_bytes;
  if (size->vcpus < wanted.vcpus || size->requested_memory_bytes != least) {
    Log(LogLevel::kInfo, "resizing",
        {{"sandbox", id_},
         {"vcpus", absl::StrCat(size->vcpus, " to ", wanted.vcpus)},
         {"memory_mib", absl::StrCat(size->memory_bytes >> 20, " to ", least >> 20)},
         {"wanted_memory_mib", absl::StrCat(wanted.memory_bytes >> 20)}});
    auto resize = vm->Resize(wanted.vcpus, least);
    const absl::Status resized = co_await std::move(resize);
    if (!resized.ok()) co_return Annotate(resized, "resize the VM");
    auto again = vm->GetSize();
    size = co_await std::move(again);
    if (!size.ok()) co_return Annotate(size.status(), "ask the VMM for the VM's size");
  }
  // A VMM that was taken over cannot talk its cgroup's limit up.
  const Record before = record_->Get();
  const uint64_t memory = std::min(size->memory_bytes, before.granted_memory_bytes);
  auto tell = TellSize(*size, wanted.vcpus, memory, wanted.memory_bytes);
  const absl::StatusOr<agent::v1::ResizeResponse> response = co_await std::move(tell);
  const absl::Status told = response.status();
  // The record may be gone.
  if (over()) co_return absl::UnavailableError("the VM has ended");
  const bool settled = told.ok() && memory == wanted.memory_bytes;
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([&](Record& record) {
    record.vcpus = std::min(size->vcpus, wanted.vcpus);
    record.memory_bytes = memory;
    record.resizing = !settled;
  }));
  if (least > wanted.memory_bytes) AskAgain();
  if (settled) {
    ask_pause_ = {};
    Log(LogLevel::kInfo, "resized",
        {{"sandbox", id_},
         {"vcpus", absl::StrCat(wanted.vcpus)},
         {"memory_mib", absl::StrCat(memory >> 20)}});
  }
  auto limit = LimitCgroup();
  const absl::Status limited = co_await std::move(limit);
  if (!told.ok()) co_return Annotate(told, "tell the guest of its size");
  co_return found.ok() ? limited : found.status();
}

Co<absl::StatusOr<agent::v1::ResizeResponse>> Machine::TellSize(vmm::Size size, uint32_t vcpus,
                                                                uint64_t memory_bytes,
                                                                uint64_t wanted_bytes) {
  const auto agent = agent_;
  if (agent == nullptr) co_return absl::UnavailableError("resize: the guest cannot be reached");
  agent::v1::ResizeRequest request;
  request.set_vcpus(vcpus);
  request.set_memory(std::max(memory_bytes, wanted_bytes) > size.boot_memory_bytes);
  const uint64_t kept = std::min(memory_bytes, wanted_bytes);
  request.set_added_bytes(kept - std::min(kept, size.boot_memory_bytes));
  auto tell = agent->Resize(std::move(request), kGuestLimit);
  co_return co_await std::move(tell);
}

Co<absl::StatusOr<uint64_t>> Machine::LeastMemory(vmm::Size size, uint64_t wanted_bytes) {
  if (wanted_bytes >= size.memory_bytes) co_return wanted_bytes;
  auto ask = TellSize(size, size.vcpus, size.memory_bytes, wanted_bytes);
  const absl::StatusOr<agent::v1::ResizeResponse> response = co_await std::move(ask);
  if (!response.ok()) co_return Annotate(response.status(), "ask the guest what it can spare");
  if (!response->has_spare_bytes()) co_return wanted_bytes;
  const uint64_t used = size.memory_bytes - std::min(size.memory_bytes, response->spare_bytes());
  if (used <= wanted_bytes) co_return wanted_bytes;
  // Whole steps beyond what is wanted, and no more than there is.
  const uint64_t needed = (used - wanted_bytes + vmm::kMemoryStep - 1) / vmm::kMemoryStep;
  const uint64_t there = (size.memory_bytes - wanted_bytes) / vmm::kMemoryStep;
  const uint64_t least = wanted_bytes + std::min(needed, there) * vmm::kMemoryStep;
  const uint64_t before = size.requested_memory_bytes;
  const bool near = std::max(least, before) - std::min(least, before) < kWorthwhile;
  co_return (near && before >= wanted_bytes) ? before : least;
}

void Machine::AskAgain() {
  if (std::exchange(asks_again_, true)) return;
  ask_pause_ = std::clamp(ask_pause_ * 2, kFirstAskPause, kLongestAskPause);
  asio::co_spawn(strand_, ResizeLater(ask_pause_), asio::detached);
}

Co<void> Machine::ResizeLater(std::chrono::seconds pause) {
  auto self = shared_from_this();
  auto wait = ended_.WaitFor(pause);
  co_await std::move(wait);
  asks_again_ = false;
  BeginResize();
}

void Machine::BeginResize() {
  const Record now = record_->Get();
  // As far as is known without asking the host what there is room for.
  const MachineSize wanted = WantedSize(now, env_->config, 0);
  if (!now.resizing && now.vcpus == wanted.vcpus && now.memory_bytes == wanted.memory_bytes) return;
  // One that has not begun looks at what is wanted then.
  if (over() || !serving_ || std::exchange(resize_waits_, true)) return;
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

Co<absl::Status> Machine::LimitCgroup() {
  if (over()) co_return absl::UnavailableError("the VM has ended");
  const Record now = record_->Get();
  const SandboxLimits limits = LimitsOf(now, env_->config);
  auto blocking = RunBlocking(*env_->blocking, [env = env_, now, limits] {
    return env->cgroups->Update(now.cgroup_parent, now.id, limits);
  });
  const absl::Status status = co_await std::move(blocking);
  co_return Annotate(status, "limit the sandbox's cgroup");
}

}  // namespace magnetar::daemon
