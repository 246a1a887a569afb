#include "src/daemon/sandbox/machine.h"

#include <signal.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <nlohmann/json.hpp>
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

// For how long a daemon that comes up waits for a supervisor that lives and does not answer.
constexpr std::chrono::seconds kReconnectLimit{60};

// How a VM whose supervisor left no record ended.
ExitRecord UnknownExit(std::string_view reason) {
  ExitRecord exit;
  exit.set_status(255);
  exit.set_exited_at_ns(RealtimeNs());
  exit.set_reason(std::string(reason));
  return exit;
}

ExitRecord ReadExit(const std::string& path) {
  const absl::StatusOr<std::string> file = ReadFile(path);
  if (!file.ok()) return UnknownExit("vmm-supervisor is gone");
  const auto json = nlohmann::json::parse(*file, nullptr, false);
  if (!json.is_object()) return UnknownExit("vmm-supervisor is gone");
  ExitRecord exit;
  auto number = [&](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_number() ? it->get<int64_t>() : int64_t{0};
  };
  exit.set_status(static_cast<uint32_t>(number("status")));
  exit.set_exited_at_ns(number("exited_at_ns"));
  auto text = [&](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  exit.set_reason(text("reason"));
  const auto unkillable = json.find("unkillable");
  exit.set_unkillable(unkillable != json.end() && *unkillable == true);
  exit.set_last_lines(text("last_lines"));
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
      attaching_(strand),
      resizing_(strand),
      ended_(strand) {}

NetworkWatch& Machine::Network() {
  if (network_watch_ == nullptr) {
    network_watch_ =
        std::make_shared<NetworkWatch>(env_, record_, strand_, [weak = weak_from_this()] {
          const auto self = weak.lock();
          if (self == nullptr || self->over()) return NetworkWatch::Peers();
          return NetworkWatch::Peers{self->vm_lost_ ? nullptr : self->vm_, self->agent_};
        });
  }
  return *network_watch_;
}

std::string Machine::Path(const std::string& name) const {
  return absl::StrCat(directory_, "/", name);
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
  exit_ = std::move(exit);
  ended_.Set();
  env_->metrics->VmEnded(HowItEnded());
  if (agent_ != nullptr) agent_->Close();
  requests_->SetVm(nullptr);
  // Nothing of the daemon's keeps the netns of a VM that has ended.
  if (network_watch_ != nullptr) network_watch_->Cease();
  requests_->TellEnds(exit_.exited_at_ns() != 0 ? exit_.exited_at_ns() : RealtimeNs());
  if (on_exit_) on_exit_(exit_);
}

// Once it has ended.
VmEnd Machine::HowItEnded() const {
  if (!killed_.empty()) return killed_as_;
  if (tearing_down_) return VmEnd::kAsked;
  if (exit_.unkillable()) return VmEnd::kUnkillable;
  // A VMM ends by itself, without an error, when its guest powers off.
  return panicked_ || exit_.status() == 0 ? VmEnd::kGuest : VmEnd::kDied;
}

Co<absl::Status> Machine::Reconnect() {
  auto self = shared_from_this();
  const auto deadline = std::chrono::steady_clock::now() + kReconnectLimit;
  std::chrono::milliseconds pause{100};
  while (true) {
    auto ask = AskSupervisor();
    absl::StatusOr<supervisor::v1::StateResponse> state = co_await std::move(ask);
    if (state.ok() && !state->has_exit()) break;
    // Nobody listens any more, or it hung up. One that only does not answer now may be on a host
    // that has no memory or no disk for it at the moment.
    const bool gone = absl::IsNotFound(state.status()) || absl::IsUnavailable(state.status());
    if (state.ok() || gone || std::chrono::steady_clock::now() >= deadline) {
      Ended(state.ok() ? state->exit() : ReadExit(Path("exit.json")));
      co_return state.ok() ? absl::UnavailableError("the VM has ended") : state.status();
    }
    Log(LogLevel::kWarn, "the supervisor does not answer",
        {{"sandbox", id_}, {"error", state.status().ToString()}});
    auto wait = ended_.WaitFor(pause);
    co_await std::move(wait);
    pause = std::min<std::chrono::milliseconds>(pause * 2, std::chrono::seconds(5));
  }
  asio::co_spawn(strand_, WatchExit(supervisor_), asio::detached);
  co_return absl::OkStatus();
}

Co<absl::StatusOr<supervisor::v1::StateResponse>> Machine::AskSupervisor() {
  auto connect = env_->supervisors->Connect(directory_);
  absl::StatusOr<std::shared_ptr<SupervisorClient>> supervisor = co_await std::move(connect);
  if (!supervisor.ok()) co_return supervisor.status();
  supervisor_ = *std::move(supervisor);
  auto call = supervisor_->State();
  absl::StatusOr<supervisor::v1::StateResponse> state = co_await std::move(call);
  co_return state;
}

void Machine::Kill(VmEnd end, std::string reason) {
  if (ended_.is_set()) return;
  Log(LogLevel::kWarn, "killing the VM", {{"sandbox", id_}, {"reason", reason}});
  if (killed_.empty()) {
    killed_ = std::move(reason);
    killed_as_ = end;
  }
  if (supervisor_ == nullptr) return;  // whoever starts it looks
  auto kill = [](std::shared_ptr<Machine> self,
                 std::shared_ptr<SupervisorClient> supervisor) -> Co<void> {
    auto call = supervisor->Kill();
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
  asio::co_spawn(strand_, kill(shared_from_this(), supervisor_), asio::detached);
}

}  // namespace magnetar::daemon
