#include "src/daemon/sandbox/machine.h"

#include <signal.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/child_process.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"

namespace magnetar::daemon {
namespace {

using supervisor::v1::ExitRecord;

// How a VM whose supervisor left no record ended.
ExitRecord UnknownExit(std::string_view reason) {
  ExitRecord exit;
  exit.set_status(255);
  exit.set_exited_at_ns(RealtimeNs());
  exit.set_reason(std::string(reason));
  return exit;
}

ExitRecord ReadExit(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return UnknownExit("vmm-supervisor is gone");
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object()) return UnknownExit("vmm-supervisor is gone");
  ExitRecord exit;
  auto number = [&](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_number() ? it->get<int64_t>() : int64_t{0};
  };
  exit.set_status(static_cast<uint32_t>(number("status")));
  exit.set_exited_at_ns(number("exited_at_ns"));
  if (const auto it = json.find("reason"); it != json.end() && it->is_string()) {
    exit.set_reason(it->get<std::string>());
  }
  return exit;
}

}  // namespace

Machine::Machine(const Environment* environment, std::shared_ptr<RecordFile> record,
                 const asio::any_io_executor& strand)
    : env_(environment),
      record_(std::move(record)),
      strand_(strand),
      id_(record_->Get().id),
      directory_(record_->directory()),
      requests_(std::make_shared<HostRequests>(environment, record_, strand)),
      ended_(strand) {}

std::string Machine::Path(const std::string& name) const {
  return absl::StrCat(directory_, "/", name);
}

std::chrono::nanoseconds Machine::TimeLeft() const {
  // Zero would mean no limit.
  return std::max<std::chrono::nanoseconds>(deadline_ - std::chrono::steady_clock::now(),
                                            std::chrono::milliseconds(1));
}

Co<void> Machine::WatchExit(std::shared_ptr<SupervisorClient> supervisor) {
  auto self = shared_from_this();
  auto wait = supervisor->WaitExit();
  absl::StatusOr<ExitRecord> exit = co_await std::move(wait);
  if (exit.ok()) {
    Ended(*std::move(exit));
    co_return;
  }
  // The supervisor is gone. Its VM shares its fate; the teardown makes sure.
  Ended(ReadExit(Path("exit.json")));
}

void Machine::Ended(ExitRecord exit) {
  if (ended_.is_set()) return;
  ended_.Set();
  if (agent_ != nullptr) agent_->Close();
  requests_->set_vm(nullptr);
  if (on_exit_) on_exit_(exit);
}

Co<absl::Status> Machine::Reconnect() {
  auto self = shared_from_this();
  auto connect = env_->supervisors->Connect(directory_);
  absl::StatusOr<std::shared_ptr<SupervisorClient>> supervisor = co_await std::move(connect);
  if (!supervisor.ok()) {
    Ended(ReadExit(Path("exit.json")));
    co_return supervisor.status();
  }
  supervisor_ = *std::move(supervisor);
  auto state_call = supervisor_->State();
  absl::StatusOr<supervisor::v1::StateResponse> state = co_await std::move(state_call);
  if (!state.ok() || state->has_exit()) {
    Ended(state.ok() ? state->exit() : ReadExit(Path("exit.json")));
    co_return absl::UnavailableError("the VM has ended");
  }
  asio::co_spawn(strand_, WatchExit(supervisor_), asio::detached);
  co_return absl::OkStatus();
}

Co<absl::Status> Machine::ReconnectGuest() {
  auto self = shared_from_this();
  const auto configured = env_->config.guest.heartbeat;
  const std::chrono::nanoseconds limit =
      configured.count() > 0 ? configured : std::chrono::seconds(30);
  auto first = Beat(limit / 2);
  absl::Status status = co_await std::move(first);
  if (!status.ok() && !ended_.is_set()) {
    auto second = Beat(limit / 2);
    status = co_await std::move(second);
  }
  if (!status.ok()) co_return Annotate(status, "the guest answers no heartbeat");
  auto connect = ConnectGuest(limit);
  status = co_await std::move(connect);
  if (!status.ok()) co_return status;
  ServeGuest();
  co_return absl::OkStatus();
}

Co<absl::Status> Machine::ConnectGuest(std::chrono::nanoseconds timeout) {
  if (vm_ == nullptr) {
    auto attach = env_->driver->Attach(directory_);
    absl::StatusOr<std::unique_ptr<vmm::Vm>> vm = co_await std::move(attach);
    if (!vm.ok()) co_return Annotate(vm.status(), "connect to the VMM");
    vm_ = *std::move(vm);
    vm_->OnEvent([id = id_](const vmm::Event& event) {
      if (event.kind == vmm::Event::Kind::kGuestPanic) {
        Log(LogLevel::kError, "guest panic", {{"sandbox", id}, {"detail", event.detail}});
      }
    });
    requests_->set_vm(vm_.get());
  }
  auto dial = env_->guests->DialAgent(Path("vm.vsock"), timeout);
  absl::StatusOr<std::shared_ptr<AgentClient>> agent = co_await std::move(dial);
  if (!agent.ok()) co_return agent.status();
  auto hello = (*agent)->Hello(timeout);
  absl::StatusOr<agent::v1::HelloResponse> greeting = co_await std::move(hello);
  if (!greeting.ok()) co_return Annotate(greeting.status(), "greet the guest's agent");
  if (!greeting->sandbox_id().empty() && greeting->sandbox_id() != id_) {
    co_return absl::InternalError("the guest says that it is another sandbox");
  }
  agent_ = *std::move(agent);
  co_return absl::OkStatus();
}

void Machine::ServeGuest() {
  if (std::exchange(serving_, true)) return;
  asio::co_spawn(strand_, ServeRequests(), asio::detached);
  if (env_->config.guest.heartbeat.count() > 0) {
    asio::co_spawn(strand_, RunHeartbeat(), asio::detached);
  }
}

Co<void> Machine::ServeRequests() {
  auto self = shared_from_this();
  constexpr std::chrono::seconds kCallLimit{10};
  std::chrono::milliseconds pause{100};
  while (!ended_.is_set() && !tearing_down_) {
    absl::Status status;
    if (agent_ == nullptr) {
      auto connect = ConnectGuest(kCallLimit);
      status = co_await std::move(connect);
    }
    if (status.ok()) {
      auto agent = agent_;
      auto list = agent->ListContainers(kCallLimit);
      absl::StatusOr<agent::v1::ListContainersResponse> held = co_await std::move(list);
      status = held.status();
      if (held.ok()) {
        std::set<std::string> ids;
        for (const auto& container : held->containers()) ids.insert(container.container_id());
        auto reconcile = requests_->Reconcile(std::move(ids));
        co_await std::move(reconcile);
        pause = std::chrono::milliseconds(100);
        auto handler = [requests = requests_](agent::v1::HostRequest request) {
          return requests->Handle(std::move(request));
        };
        auto serve = agent->ServeHostRequests(std::move(handler));
        status = co_await std::move(serve);
      }
      if (agent_ == agent) agent_.reset();
    }
    if (ended_.is_set() || tearing_down_) break;
    Log(LogLevel::kWarn, "connection to the guest's agent lost",
        {{"sandbox", id_}, {"error", status.ToString()}});
    // Again, but not as fast as the guest can refuse.
    auto wait = ended_.WaitFor(pause);
    co_await std::move(wait);
    pause = std::min<std::chrono::milliseconds>(pause * 2, std::chrono::seconds(5));
  }
}

Co<absl::Status> Machine::Beat(std::chrono::nanoseconds limit) {
  auto call = env_->guests->Beat(Path("vm.vsock"), limit);
  absl::StatusOr<agent::v1::BeatResponse> beat = co_await std::move(call);
  co_return beat.status();
}

Co<void> Machine::RunHeartbeat() {
  auto self = shared_from_this();
  const std::chrono::nanoseconds limit = env_->config.guest.heartbeat;
  while (!ended_.is_set() && !tearing_down_) {
    auto rest = ended_.WaitFor(limit / 3);
    co_await std::move(rest);
    if (ended_.is_set() || tearing_down_) break;
    auto first = Beat(limit * 2 / 3);
    absl::Status status = co_await std::move(first);
    if (status.ok() || ended_.is_set() || tearing_down_) continue;
    // The daemon itself may have been stopped while its timer ran: what counts is
    // a second probe, begun now.
    Log(LogLevel::kWarn, "the guest left a heartbeat unanswered",
        {{"sandbox", id_}, {"error", status.ToString()}});
    auto second = Beat(limit / 3);
    status = co_await std::move(second);
    if (status.ok() || ended_.is_set() || tearing_down_) continue;
    Kill(absl::StrCat("the guest answers no heartbeat: ", status.ToString()));
    break;
  }
}

void Machine::Kill(std::string reason) {
  if (ended_.is_set()) return;
  Log(LogLevel::kWarn, "killing the VM", {{"sandbox", id_}, {"reason", reason}});
  if (supervisor_ == nullptr) return;
  auto kill = [](std::shared_ptr<Machine> self) -> Co<void> {
    auto call = self->supervisor_->Kill();
    const absl::Status status = co_await std::move(call);
    if (status.ok() || self->ended_.is_set()) co_return;
    // A supervisor that does not answer shares the guest's fate.
    const std::vector<RecordedProcess> processes = self->record_->Get().processes;
    auto blocking = RunBlocking(*self->env_->blocking, [processes] {
      for (const RecordedProcess& process : processes) {
        const auto fd = OpenProcess(process.identity);
        if (fd.ok()) (void)SignalProcess(fd->get(), SIGKILL);
      }
      return true;
    });
    co_await std::move(blocking);
  };
  asio::co_spawn(strand_, kill(shared_from_this()), asio::detached);
}

}  // namespace magnetar::daemon
