#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/child_process.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/guest_cid.h"
#include "src/daemon/sandbox/machine.h"
#include "src/daemon/sandbox/pod_request.h"
#include "src/daemon/sandbox/size_annotations.h"
#include "src/daemon/sandbox/sizes.h"
#include "vmm/file_share.h"
#include "vmm/ninep.h"

namespace magnetar::daemon {
namespace {

// Its messages have only grown since.
constexpr uint32_t kOldestSupervisorProtocol = 1;

// How far off a guest's clock may be to begin with: afterwards it is brought right by half a
// millisecond a second. On a host that is too busy for it, the best greeting has to do.
constexpr std::chrono::milliseconds kClockTolerance{5};
constexpr int kClockGreetings = 8;
constexpr std::chrono::milliseconds kClockLimit{500};

absl::Status MakeVmmDirectory(const std::string& path, uint32_t uid) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  }
  if (::geteuid() == 0 && ::chown(path.c_str(), uid, uid) != 0) {
    return ErrnoStatus(errno, absl::StrCat("chown ", path));
  }
  return absl::OkStatus();
}

// As containerd's own sandboxer: without a DNS configuration, the host's.
std::string PodResolvConf(const runtime::v1::DNSConfig& dns) {
  if (dns.servers_size() + dns.searches_size() + dns.options_size() > 0) return ResolvConf(dns);
  return ReadFile("/etc/resolv.conf").value_or("");
}

std::string PodHostname(const runtime::v1::PodSandboxConfig& pod, const std::string& id) {
  if (!pod.hostname().empty()) return pod.hostname();
  const std::string& name = pod.metadata().name();
  const bool usable = !name.empty() && name.size() <= 63 && ValidateId(name, "name").ok();
  return usable ? name : id.substr(0, 12);
}

}  // namespace

const vmm::FileShare* Machine::Share() const {
  // The configuration names no other.
  return vmm::FindFileShare(env_->config.vm.file_share);
}

absl::Status Machine::CheckKilled() const {
  return killed_.empty() ? absl::OkStatus() : absl::CancelledError(killed_);
}

Co<absl::Status> Machine::Timed(StartPhase phase, Co<absl::Status> work) {
  const auto since = DaemonMetrics::Clock::now();
  const absl::Status status = co_await std::move(work);
  env_->metrics->StartPhaseEnded(phase, status, since);
  co_return status;
}

Co<absl::Status> Machine::Start(runtime::v1::PodSandboxConfig pod) {
  auto self = shared_from_this();
  deadline_ = std::chrono::steady_clock::now() + env_->config.vm.start_timeout;
  auto host = Timed(StartPhase::kHost, MakeHost(pod));
  absl::Status status = co_await std::move(host);
  if (status.ok()) {
    auto launch = Timed(StartPhase::kLaunch, Launch());
    status = co_await std::move(launch);
  }
  if (status.ok()) {
    auto ready = Timed(StartPhase::kReady, WaitUntilReady());
    status = co_await std::move(ready);
  }
  if (status.ok()) {
    auto guest = Timed(StartPhase::kSetup, SetupGuest(pod));
    status = co_await std::move(guest);
  }
  cgroup_procs_.clear();
  agent::v1::Network told = std::move(network_.guest);
  network_ = PodNetwork();
  if (status.ok()) {
    ServeGuest();
    Network().Start(std::move(told));
  }
  co_return status;
}

// The host would kill a VM that is larger than its pod's cgroup holds.
Co<absl::Status> Machine::CheckRoom(uint64_t asked_bytes) {
  auto read = MemoryLimitAbove();
  const absl::StatusOr<uint64_t> above = co_await std::move(read);
  if (!above.ok()) co_return above.status();
  const uint64_t room = RoomFor(record_->Get(), env_->config, *above);
  if (asked_bytes <= room) co_return absl::OkStatus();
  co_return absl::FailedPreconditionError(
      absl::StrCat("annotations: ", kMemoryAnnotation, ": the pod's cgroup is limited to ",
                   *above / kMebibyte, " MiB, in which a VM has room for ", room / kMebibyte));
}

// Everything that lies around a VM.
Co<absl::Status> Machine::MakeHost(const runtime::v1::PodSandboxConfig& pod) {
  const Record now = record_->Get();
  const Config::Sizing& sizing = env_->config.SizingOf(now.runtime_handler);
  const absl::StatusOr<MachineSize> asked = AskedSize(pod, sizing, HostMemory());
  if (!asked.ok()) co_return asked.status();
  const MachineSize needed = SizeOf(pod.linux().resources(), sizing);
  if (asked->memory_bytes > needed.memory_bytes) {
    auto check = CheckRoom(asked->memory_bytes);
    const absl::Status room = co_await std::move(check);
    if (!room.ok()) co_return room;
  }
  absl::StatusOr<uint32_t> uid = env_->uids->Take();
  if (!uid.ok()) co_return uid.status();
  const MachineSize size = LargerOf(needed, *asked);
  const vmm::Capabilities& can = env_->driver->capabilities();
  const MachineSize largest = LargestSize(size, sizing, HostMemory());
  absl::Status status = record_->Update([&](Record& record) {
    record.steps.push_back(Step::kDirectory);
    record.uid = *uid;
    record.vcpus = size.vcpus;
    record.memory_bytes = size.memory_bytes;
    record.boot_memory_bytes = size.memory_bytes;
    record.max_vcpus = can.resize_cpus ? largest.vcpus : size.vcpus;
    record.max_memory_bytes = can.resize_memory ? largest.memory_bytes : size.memory_bytes;
    record.vmm = std::string(env_->driver->name());
    record.file_share = env_->config.vm.file_share;
  });
  if (!status.ok()) {
    // What the record holds is given back with it.
    if (record_->Get().uid != *uid) env_->uids->Give(*uid);
    co_return status;
  }
  MAGNETAR_CO_RETURN_IF_ERROR(MakeVmmDirectory(Path("vmm"), *uid));
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("start.directory"));

  MAGNETAR_CO_RETURN_IF_ERROR(record_->AddStep(Step::kCgroup));
  const SandboxLimits limits =
      LimitsOf(pod.linux().resources(), pod.linux().overhead(), size.memory_bytes, sizing);
  auto cgroup = RunBlocking(*env_->blocking, [env = env_, now, limits] {
    return env->cgroups->Create(now.cgroup_parent, now.id, limits);
  });
  absl::StatusOr<std::vector<UniqueFd>> procs = co_await std::move(cgroup);
  if (!procs.ok()) co_return Annotate(procs.status(), "make the cgroup");
  cgroup_procs_ = *std::move(procs);
  MAGNETAR_CO_RETURN_IF_ERROR(CheckKilled());
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("start.cgroup"));

  if (!now.netns_path.empty()) {
    auto network = Timed(StartPhase::kNetwork, MakeNetwork());
    status = co_await std::move(network);
    if (!status.ok()) co_return status;
  }

  MAGNETAR_CO_RETURN_IF_ERROR(record_->AddStep(Step::kShared));
  auto make = RunBlocking(*env_->blocking,
                          [env = env_, path = Path("shared")] { return env->shared->Make(path); });
  status = co_await std::move(make);
  if (!status.ok()) co_return Annotate(status, "make the shared directory");
  MAGNETAR_CO_RETURN_IF_ERROR(CheckKilled());
  co_return Failpoint("start.shared");
}

Co<absl::Status> Machine::MakeNetwork() {
  MAGNETAR_CO_RETURN_IF_ERROR(record_->AddStep(Step::kNetwork));
  const Record now = record_->Get();
  auto attach = RunBlocking(
      *env_->blocking, [env = env_, now] { return env->network->Attach(now.netns_path, now.uid); });
  absl::StatusOr<PodNetwork> network = co_await std::move(attach);
  if (!network.ok()) {
    // It leaves nothing behind, and what is in the netns may be another pod's: undoing this
    // step would take it away from a VM that runs.
    Forgive(record_->RemoveStep(Step::kNetwork));
    co_return Annotate(network.status(), "attach the pod's network");
  }
  network_ = *std::move(network);
  MAGNETAR_CO_RETURN_IF_ERROR(record_->Update([this](Record& record) {
    record.nics.clear();
    for (const PodTap& tap : network_.taps) {
      const auto slot = static_cast<uint32_t>(record.nics.size());
      record.nics.push_back({slot, tap.index, tap.interface, tap.mac, tap.mtu, /*plugged=*/true});
    }
  }));
  MAGNETAR_CO_RETURN_IF_ERROR(CheckKilled());
  co_return Failpoint("start.network");
}

Co<absl::Status> Machine::Launch() {
  const Record now = record_->Get();
  vmm::MachineSpec spec;
  spec.sandbox_id = id_;
  spec.directory = directory_;
  spec.vcpus = now.vcpus;
  spec.max_vcpus = now.max_vcpus;
  spec.memory_bytes = now.memory_bytes;
  spec.max_memory_bytes = now.max_memory_bytes;
  spec.kernel_path = env_->config.guest.kernel;
  spec.initrd_path = env_->config.guest.initrd;
  spec.image_path = env_->config.guest.image;
  spec.extra_cmdline = absl::StrCat("magnetar.log=", env_->config.guest.log_level);
  if (!env_->config.guest.extra_cmdline.empty()) {
    absl::StrAppend(&spec.extra_cmdline, " ", env_->config.guest.extra_cmdline);
  }
  spec.transport = env_->transport;
  if (spec.transport == vmm::TransportKind::kKernelVsock) {
    absl::StatusOr<uint32_t> cid = FindGuestCid();
    if (!cid.ok()) co_return cid.status();
    spec.guest_cid = *cid;
  }
  const bool in_memory = Share()->shares_memory;
  if (in_memory) spec.shared_directory = Path("shared");
  for (size_t i = 0; i < network_.taps.size(); ++i) {
    const PodTap& tap = network_.taps[i];
    spec.nics.push_back({absl::StrCat("nic", i), tap.mac, tap.mtu, tap.fd.get()});
  }
  spec.uid = now.uid;
  spec.gid = now.uid;
  auto plan_call = RunBlocking(
      *env_->blocking,
      [env = env_, &spec, in_memory, shared = Path("shared")]() -> absl::StatusOr<vmm::LaunchPlan> {
        absl::StatusOr<vmm::LaunchPlan> plan = env->driver->Plan(spec);
        if (!plan.ok() || in_memory) return plan;
        MAGNETAR_RETURN_IF_ERROR(vmm::PlanNinep(env->config.vm.vmm_9p_path, shared, *plan));
        return plan;
      });
  absl::StatusOr<vmm::LaunchPlan> plan = co_await std::move(plan_call);
  if (!plan.ok()) co_return Annotate(plan.status(), "plan the VM");
  MAGNETAR_CO_RETURN_IF_ERROR(CheckKilled());

  supervisor::v1::Launch launch;
  launch.set_sandbox_id(id_);
  launch.set_directory(directory_);
  for (supervisor::v1::Process& process : plan->processes) {
    for (const UniqueFd& procs : cgroup_procs_) process.add_cgroup_procs_fds(procs.get());
    if (network_.netns.ok()) process.set_netns_fd(network_.netns.get());
    *launch.add_processes() = std::move(process);
  }
  *launch.mutable_transport() = plan->transport;
  for (supervisor::v1::GuestStream& stream : plan->guest_streams) {
    *launch.add_guest_streams() = std::move(stream);
  }
  launch.set_ring_bytes(static_cast<uint32_t>(env_->config.vm.console_ring_kib << 10));
  launch.set_unkillable_after_seconds(
      static_cast<uint32_t>(env_->config.guest.unkillable_after.count()));
  if (network_.forward_listener.ok()) {
    launch.set_forward_listener_fd(network_.forward_listener.get());
    launch.set_forward_port(kForwardPort);
  }
  MAGNETAR_CO_RETURN_IF_ERROR(record_->AddStep(Step::kSupervisor));
  // Before anything else can go wrong: the processes below it share its fate.
  auto spawned = [record = record_](const ProcessIdentity& identity) {
    return record->Update([&](Record& r) { r.processes = {{kSupervisor, identity, false}}; });
  };
  auto launch_call = env_->supervisors->Launch(std::move(launch), std::move(spawned));
  absl::StatusOr<std::shared_ptr<SupervisorClient>> supervisor = co_await std::move(launch_call);
  if (!supervisor.ok()) co_return Annotate(supervisor.status(), "start vmm-supervisor");
  supervisor_ = *std::move(supervisor);
  asio::co_spawn(strand_, WatchExit(supervisor_), asio::detached);
  MAGNETAR_CO_RETURN_IF_ERROR(CheckKilled());
  co_return Failpoint("start.supervisor");
}

Co<absl::Status> Machine::WaitUntilReady() {
  auto learn = LearnProcesses();
  absl::Status status = co_await std::move(learn);
  if (status.ok()) status = CheckKilled();
  if (status.ok()) {
    const auto left = std::max<std::chrono::nanoseconds>(
        deadline_ - std::chrono::steady_clock::now(), std::chrono::milliseconds(1));
    auto ready = supervisor_->WaitReady(left);
    status = co_await std::move(ready);
    status = Annotate(status, "wait for the guest");
  }
  if (absl::IsUnavailable(status)) {
    auto explain = ExplainEnd(std::move(status));
    status = co_await std::move(explain);
  }
  // One that could not be started has been told of by now.
  if (status.ok() && record_->Get().vmm_pid == 0) {
    status = absl::InternalError("vmm-supervisor names no VMM");
  }
  if (status.ok()) status = CheckKilled();
  if (!status.ok()) co_return status;
  co_return Failpoint("start.ready");
}

// A supervisor that is gone has told before how its VM ended.
Co<absl::Status> Machine::ExplainEnd(absl::Status status) {
  constexpr std::chrono::seconds kTold{1};
  auto wait = ended_.WaitFor(kTold);
  const bool ended = co_await std::move(wait);
  if (!ended) co_return status;
  co_return absl::FailedPreconditionError(
      absl::StrCat("wait for the guest: VM ended: ", exit_.reason(),
                   exit_.last_lines().empty() ? "" : "; its last lines:\n", exit_.last_lines()));
}

Co<absl::Status> Machine::LearnProcesses() {
  auto hello_call = supervisor_->Hello();
  absl::StatusOr<supervisor::v1::HelloResponse> hello = co_await std::move(hello_call);
  if (!hello.ok()) co_return Annotate(hello.status(), "greet vmm-supervisor");
  if (hello->protocol() < kOldestSupervisorProtocol) {
    co_return absl::FailedPreconditionError(absl::StrCat(
        "vmm-supervisor speaks protocol ", hello->protocol(), ", this daemon at least ",
        kOldestSupervisorProtocol, ": vm.supervisor_path is too old"));
  }
  const auto& can = hello->features();
  if (Share()->port != 0 && std::find(can.begin(), can.end(), "guest-streams") == can.end()) {
    co_return absl::FailedPreconditionError(
        absl::StrCat("vm.file_share is ", Share()->name, ": vm.supervisor_path is too old for it"));
  }
  auto state_call = supervisor_->State();
  absl::StatusOr<supervisor::v1::StateResponse> state = co_await std::move(state_call);
  if (!state.ok()) co_return Annotate(state.status(), "ask vmm-supervisor for its processes");
  // Then nothing is left to be known by.
  if (state->has_exit()) co_return absl::OkStatus();
  const absl::StatusOr<std::string> boot_id = BootId();
  if (!boot_id.ok()) co_return boot_id.status();
  std::vector<RecordedProcess> processes;
  uint32_t vmm_pid = 0;
  for (const supervisor::v1::ProcessState& p : state->processes()) {
    ProcessIdentity identity;
    identity.pid = static_cast<pid_t>(p.pid());
    identity.start_time_ticks = p.start_time_ticks();
    identity.boot_id = *boot_id;
    processes.push_back({p.name(), std::move(identity), p.vmm()});
    if (p.vmm()) vmm_pid = p.pid();
  }
  // Last, so that it outlives and reaps the others. One that is already gone is found
  // out by whoever waits for the VM's end.
  absl::StatusOr<ProcessIdentity> self = IdentifyProcess(static_cast<pid_t>(hello->pid()));
  if (self.ok()) processes.push_back({kSupervisor, *std::move(self), false});
  co_return record_->Update([&](Record& record) {
    record.processes = processes;
    record.vmm_pid = vmm_pid;
  });
}

// A greeting sets the clock of a guest that is not set up yet, which is late then by the message's
// way. The first one takes long: all that handles it is new to the guest. What is wrong with a
// guest that does not answer, its set-up tells.
Co<void> Machine::SetGuestClock() {
  const auto agent = agent_;
  const TimePoint end = std::min(deadline_, std::chrono::steady_clock::now() + kClockLimit);
  for (int greeting = 0; greeting < kClockGreetings; ++greeting) {
    const auto begin = std::chrono::steady_clock::now();
    auto hello = agent->Hello(Left(end));
    const absl::StatusOr<agent::v1::HelloResponse> greeted = co_await std::move(hello);
    const auto now = std::chrono::steady_clock::now();
    if (!greeted.ok() || now - begin <= kClockTolerance || now >= end) break;
  }
}

Co<absl::Status> Machine::SetupGuest(const runtime::v1::PodSandboxConfig& pod) {
  auto attach = AttachVm();
  absl::Status status = co_await std::move(attach);
  if (status.ok()) status = CheckKilled();
  if (!status.ok()) co_return status;
  auto connect = ConnectAgent(deadline_);
  status = co_await std::move(connect);
  if (status.ok()) status = CheckKilled();
  if (!status.ok()) co_return status;
  auto clock = SetGuestClock();
  co_await std::move(clock);
  status = CheckKilled();
  if (!status.ok()) co_return status;
  MAGNETAR_CO_RETURN_IF_ERROR(Failpoint("start.hello"));

  MAGNETAR_CO_RETURN_IF_ERROR(record_->AddStep(Step::kGuest));
  const Record now = record_->Get();
  agent::v1::SetupSandboxRequest request;
  request.set_sandbox_id(id_);
  request.set_vmm_pid(now.vmm_pid);
  request.set_hostname(PodHostname(pod, id_));
  request.set_resolv_conf(PodResolvConf(pod.dns_config()));
  std::vector<std::string> addresses;
  for (const auto& interface : network_.guest.interfaces()) {
    addresses.insert(addresses.end(), interface.addresses().begin(), interface.addresses().end());
  }
  request.set_hosts(HostsFile(request.hostname(), addresses));
  for (const auto& [key, value] : pod.linux().sysctls()) (*request.mutable_sysctls())[key] = value;
  *request.mutable_network() = network_.guest;
  const vmm::FileShare& share = *Share();
  if (*share.guest_feature != '\0' && !HasFeature(now, share.guest_feature)) {
    co_return absl::FailedPreconditionError(
        absl::StrCat("vm.file_share is ", share.name, ": the guest image is too old for it"));
  }
  request.set_shared_tag(share.tag);
  request.set_shared_port(share.port);
  request.set_memory_reserve_bytes(env_->config.guest.memory_reserve_mib << 20);
  std::string entropy(64, '\0');
  if (::getentropy(entropy.data(), entropy.size()) == 0) request.set_entropy(std::move(entropy));
  // Its end closes the connection and forgets it, while the call goes on.
  auto agent = agent_;
  auto setup = agent->SetupSandbox(std::move(request), Left(deadline_));
  status = co_await std::move(setup);
  if (status.ok()) status = CheckKilled();
  if (!status.ok()) co_return Annotate(status, "set the guest up");
  co_return Failpoint("start.guest");
}

}  // namespace magnetar::daemon
