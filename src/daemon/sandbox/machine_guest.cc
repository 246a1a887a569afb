#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/machine.h"

namespace magnetar::daemon {
namespace {

constexpr std::chrono::seconds kCallLimit{10};
constexpr std::chrono::milliseconds kFirstPause{100};
constexpr std::chrono::milliseconds kLongestPause{5000};

// They go into the record, which a guest must not be able to make unreadable.
constexpr int kMaxFeatures = 64;
constexpr size_t kMaxFeatureBytes = 64;

absl::Status CheckFeatures(const agent::v1::HelloResponse& greeting) {
  bool fit = greeting.features_size() <= kMaxFeatures;
  for (const std::string& feature : greeting.features()) {
    fit = fit && feature.size() <= kMaxFeatureBytes;
  }
  return fit ? absl::OkStatus()
             : absl::InvalidArgumentError(absl::StrCat("the guest names more than ", kMaxFeatures,
                                                       " features, or a feature longer than ",
                                                       kMaxFeatureBytes, " bytes"));
}
// What a guest that is found again may take: whoever waits for the daemon's start has limits.
constexpr std::chrono::seconds kRecoveryLimit{60};
// Its messages have only grown since.
constexpr uint32_t kOldestAgentProtocol = 1;

}  // namespace

std::chrono::nanoseconds Machine::Left(TimePoint deadline) {
  return std::max<std::chrono::nanoseconds>(deadline - std::chrono::steady_clock::now(),
                                            std::chrono::milliseconds(1));
}

Co<absl::Status> Machine::ReconnectGuest() {
  auto self = shared_from_this();
  std::chrono::nanoseconds limit = env_->config.guest.heartbeat;
  if (limit.count() == 0) limit = std::chrono::seconds(30);
  auto seek = SeekLife(std::min<std::chrono::nanoseconds>(limit, kRecoveryLimit));
  const absl::Status alive = co_await std::move(seek);
  if (!alive.ok()) co_return Annotate(alive, "the guest answers no heartbeat");
  // A guest that lives is left alone, whatever else does not work yet: an earlier daemon may still
  // hold the VMM's only connection.
  auto attach = AttachVm();
  absl::Status status = co_await std::move(attach);
  if (status.ok()) {
    auto connect = ConnectAgent(std::chrono::steady_clock::now() + kCallLimit);
    status = co_await std::move(connect);
  }
  if (!status.ok()) {
    Log(LogLevel::kWarn, "the guest cannot be served yet",
        {{"sandbox", id_}, {"error", status.ToString()}});
  }
  ServeGuest();
  Network().Start(std::nullopt);
  co_return absl::OkStatus();
}

Co<absl::Status> Machine::AttachVm() {
  auto lock = attaching_.Lock();
  const AsyncMutex::Guard guard = co_await std::move(lock);
  if (ended_.is_set()) co_return absl::UnavailableError("the VM has ended");
  if (vm_ != nullptr && !vm_lost_) co_return absl::OkStatus();
  auto attach = env_->driver->Attach(directory_);
  absl::StatusOr<std::unique_ptr<vmm::Vm>> attached = co_await std::move(attach);
  if (!attached.ok()) co_return Annotate(attached.status(), "connect to the VMM");
  if (ended_.is_set()) co_return absl::UnavailableError("the VM has ended");
  vm_ = *std::move(attached);
  vm_lost_ = false;
  vm_->OnEvent([weak = weak_from_this(), vm = vm_.get()](const vmm::Event& event) {
    if (const auto self = weak.lock()) self->OnVmEvent(vm, event);
  });
  requests_->SetVm(vm_);
  // What could not be detached without a connection.
  requests_->RetryReleases();
  Network().Poke();
  co_return absl::OkStatus();
}

void Machine::OnVmEvent(const vmm::Vm* vm, const vmm::Event& event) {
  switch (event.kind) {
    case vmm::Event::Kind::kGuestPanic:
      panicked_ = true;
      Log(LogLevel::kError, "guest panic", {{"sandbox", id_}, {"detail", event.detail}});
      return;
    case vmm::Event::Kind::kDeviceDeleted:
      // The guest has let go of a disk or a NIC, maybe long after it was asked to.
      requests_->RetryReleases();
      if (absl::StartsWith(event.detail, "nic")) Network().NicGone();
      return;
    case vmm::Event::Kind::kMemoryChanged:
      BeginResize();
      return;
    case vmm::Event::Kind::kClosed:
      if (vm != vm_.get() || vm_lost_ || over()) return;
      vm_lost_ = true;
      requests_->LoseVm();
      asio::co_spawn(strand_, ReattachVm(), asio::detached);
      return;
    case vmm::Event::Kind::kShutdown:
    case vmm::Event::Kind::kReset:
      return;  // its end is told by the supervisor
  }
}

Co<void> Machine::ReattachVm() {
  auto self = shared_from_this();
  std::chrono::milliseconds pause = kFirstPause;
  while (true) {
    // A VM that dies closes its connection, too, and its end is told soon.
    auto wait = ended_.WaitFor(pause);
    co_await std::move(wait);
    if (over() || !vm_lost_) co_return;
    auto attach = AttachVm();
    const absl::Status status = co_await std::move(attach);
    if (status.ok()) {
      Log(LogLevel::kInfo, "connected to the VMM again", {{"sandbox", id_}});
      BeginResize();
      co_return;
    }
    if (over()) co_return;
    Log(LogLevel::kWarn, "connection to the VMM lost",
        {{"sandbox", id_}, {"error", status.ToString()}});
    pause = std::min(pause * 2, kLongestPause);
  }
}

Co<absl::Status> Machine::ConnectAgent(TimePoint deadline) {
  auto dial = env_->guests->DialAgent(Path("vm.vsock"), Left(deadline));
  absl::StatusOr<std::shared_ptr<AgentClient>> agent = co_await std::move(dial);
  if (!agent.ok()) co_return agent.status();
  auto hello = (*agent)->Hello(Left(deadline));
  absl::StatusOr<agent::v1::HelloResponse> greeting = co_await std::move(hello);
  if (!greeting.ok()) co_return Annotate(greeting.status(), "greet the guest's agent");
  if (!greeting->sandbox_id().empty() && greeting->sandbox_id() != id_) {
    co_return absl::InternalError("the guest says that it is another sandbox");
  }
  if (greeting->protocol() < kOldestAgentProtocol) {
    co_return absl::FailedPreconditionError(
        absl::StrCat("the guest's agent (", greeting->agent_version(), ") speaks protocol ",
                     greeting->protocol(), ", this daemon at least ", kOldestAgentProtocol,
                     ": the guest image is too old"));
  }
  MAGNETAR_CO_RETURN_IF_ERROR(CheckFeatures(*greeting));
  const std::vector<std::string> features(greeting->features().begin(), greeting->features().end());
  const Record now = record_->Get();
  if (now.agent_protocol != greeting->protocol() || now.agent_features != features) {
    Forgive(record_->Update([&](Record& record) {
      record.agent_protocol = greeting->protocol();
      record.agent_features = features;
    }));
  }
  agent_ = *std::move(agent);
  Network().Poke();
  co_return absl::OkStatus();
}

void Machine::ServeGuest() {
  if (std::exchange(serving_, true)) return;
  requests_->OnLimitsChanged([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->BeginResize();
  });
  asio::co_spawn(strand_, ServeRequests(), asio::detached);
  if (env_->config.guest.heartbeat.count() > 0) {
    asio::co_spawn(strand_, RunHeartbeat(), asio::detached);
  }
}

Co<void> Machine::ServeRequests() {
  auto self = shared_from_this();
  std::chrono::milliseconds pause = kFirstPause;
  while (!over()) {
    const auto begin = std::chrono::steady_clock::now();
    auto serve = ServeOnce();
    const absl::Status status = co_await std::move(serve);
    if (over()) break;
    Log(LogLevel::kWarn, "connection to the guest's agent lost",
        {{"sandbox", id_}, {"error", status.ToString()}});
    // Again, but not as fast as the guest can refuse.
    auto wait = ended_.WaitFor(pause);
    co_await std::move(wait);
    const bool lasted = std::chrono::steady_clock::now() - begin > kLongestPause;
    pause = lasted ? kFirstPause : std::min(pause * 2, kLongestPause);
  }
}

// Serves one connection to its end.
Co<absl::Status> Machine::ServeOnce() {
  auto attach = AttachVm();
  const absl::Status attached = co_await std::move(attach);
  if (!attached.ok()) co_return attached;
  if (agent_ == nullptr) {
    auto connect = ConnectAgent(std::chrono::steady_clock::now() + kCallLimit);
    const absl::Status connected = co_await std::move(connect);
    if (!connected.ok()) co_return connected;
  }
  auto agent = agent_;
  auto list = agent->ListContainers(kCallLimit);
  absl::StatusOr<agent::v1::ListContainersResponse> held = co_await std::move(list);
  absl::Status status = held.status();
  if (held.ok()) {
    std::set<std::string> ids;
    for (const auto& container : held->containers()) ids.insert(container.container_id());
    auto reconcile = requests_->Reconcile(std::move(ids));
    co_await std::move(reconcile);
    // Aside: a containerd that is away is waited for, and the guest is not to wait with it.
    asio::co_spawn(strand_, requests_->LearnAllLimits(), asio::detached);
    auto handler = [requests = requests_](agent::v1::HostRequest request) {
      return requests->Handle(std::move(request));
    };
    // What an earlier connection or an earlier daemon has not brought to its end.
    BeginResize();
    auto serve = agent->ServeHostRequests(std::move(handler));
    status = co_await std::move(serve);
  }
  if (agent_ == agent) agent_.reset();
  co_return status;
}

Co<absl::Status> Machine::Beat(std::chrono::nanoseconds timeout) {
  auto call = env_->guests->Beat(Path("vm.vsock"), timeout);
  absl::StatusOr<agent::v1::BeatResponse> beat = co_await std::move(call);
  if (!beat.ok()) co_return beat.status();
  agent_peak_rss_ = beat->agent_peak_rss_bytes();
  // The heartbeat has a thread of its own: it alone is no life.
  const std::chrono::milliseconds limit = env_->config.guest.heartbeat;
  const uint64_t age = beat->main_loop_age_ms();
  if (limit.count() > 0 && age > static_cast<uint64_t>(limit.count())) {
    co_return absl::DeadlineExceededError(
        absl::StrCat("the agent's main loop has stood still for ", age, " ms"));
  }
  co_return absl::OkStatus();
}

// OK as soon as the guest answers a heartbeat; an error if it answered none for `limit`. Only time
// in which this daemon ran counts: a probe during which it was stopped costs no more than
// its own timeout, and there always is a second one.
Co<absl::Status> Machine::SeekLife(std::chrono::nanoseconds limit) {
  const std::chrono::nanoseconds longest = limit / 2;
  const std::chrono::nanoseconds shortest = limit / 10;
  std::chrono::nanoseconds left = limit;
  absl::Status status;
  while (left.count() > 0) {
    const auto begin = std::chrono::steady_clock::now();
    const std::chrono::nanoseconds timeout = std::min(longest, left);
    auto beat = Beat(timeout);
    status = co_await std::move(beat);
    if (status.ok() || over()) co_return status;
    env_->metrics->HeartbeatMissed();
    if (left == limit) {
      Log(LogLevel::kWarn, "the guest left a heartbeat unanswered",
          {{"sandbox", id_}, {"error", status.ToString()}});
    }
    const std::chrono::nanoseconds took =
        std::min<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin, timeout);
    // A refusal comes at once, and the guest may have its reasons: it is asked again later.
    if (took < shortest) {
      auto rest = ended_.WaitFor(shortest - took);
      co_await std::move(rest);
      if (over()) co_return status;
    }
    left -= std::max(took, shortest);
  }
  co_return status;
}

Co<void> Machine::RunHeartbeat() {
  auto self = shared_from_this();
  const std::chrono::nanoseconds limit = env_->config.guest.heartbeat;
  while (!over()) {
    auto rest = ended_.WaitFor(limit / 3);
    co_await std::move(rest);
    if (over()) break;
    auto seek = SeekLife(limit);
    const absl::Status alive = co_await std::move(seek);
    if (alive.ok() || over()) continue;
    Kill(VmEnd::kHung, absl::StrCat("the guest answers no heartbeat: ", alive.ToString()));
    break;
  }
}

}  // namespace magnetar::daemon
