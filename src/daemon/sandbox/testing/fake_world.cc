#include "src/daemon/sandbox/testing/fake_world.h"

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <condition_variable>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "src/daemon/sandbox/testing/fake_host.h"

namespace magnetar::daemon {

using supervisor::v1::ExitRecord;

// A VM, on the world's only event thread.
struct FakeWorld::Vm {
  explicit Vm(const asio::any_io_executor& executor) : over(executor) {}
  AsyncFlag over;
  ExitRecord exit;
  vmm::Size size;
  std::map<std::string, std::string> nics;  // MACs by id
  const vmm::Vm* told = nullptr;            // whose handler it is
  std::function<void(const vmm::Event&)> on_event;

  void End(uint32_t status, const std::string& reason) {
    if (over.is_set()) return;
    exit.set_status(status);
    exit.set_exited_at_ns(RealtimeNs());
    exit.set_reason(reason);
    over.Set();
  }
};

namespace {

using VmPtr = std::shared_ptr<FakeWorld::Vm>;

class FakeSupervisor : public SupervisorClient {
 public:
  FakeSupervisor(FakeWorld* world, VmPtr vm) : world_(world), vm_(std::move(vm)) {}

  Co<absl::StatusOr<supervisor::v1::HelloResponse>> Hello() override {
    supervisor::v1::HelloResponse response;
    response.set_pid(1 << 23);  // no process has this number
    response.set_protocol(1);
    co_return response;
  }
  Co<absl::Status> WaitReady(std::chrono::nanoseconds timeout) override {
    auto note = world_->NoteAsync("supervisor.ready");
    const absl::Status status = co_await std::move(note);
    if (!status.ok()) co_return status;
    if (world_->hang()) {
      auto wait = vm_->over.WaitFor(timeout);
      if (!co_await std::move(wait)) co_return absl::DeadlineExceededError("not ready");
    }
    if (vm_->over.is_set()) co_return absl::FailedPreconditionError("the VM ended");
    co_return absl::OkStatus();
  }
  Co<absl::StatusOr<ExitRecord>> WaitExit() override {
    auto wait = vm_->over.Wait();
    co_await std::move(wait);
    co_return vm_->exit;
  }
  Co<absl::StatusOr<supervisor::v1::StateResponse>> State() override {
    absl::Status status = world_->Note("supervisor.state");
    if (!status.ok()) co_return status;
    supervisor::v1::StateResponse response;
    auto* process = response.add_processes();
    process->set_name("qemu");
    process->set_pid(1 << 23);
    process->set_start_time_ticks(1);
    process->set_vmm(true);
    if (vm_->over.is_set()) *response.mutable_exit() = vm_->exit;
    co_return response;
  }
  Co<absl::Status> Kill() override {
    absl::Status status = world_->Note("supervisor.kill");
    vm_->End(137, "qemu: killed by SIGKILL");
    co_return status;
  }

 private:
  FakeWorld* world_;
  VmPtr vm_;
};

class FakeLauncher : public SupervisorLauncher {
 public:
  explicit FakeLauncher(FakeWorld* world) : world_(world) {}
  Co<absl::StatusOr<std::shared_ptr<SupervisorClient>>> Launch(supervisor::v1::Launch launch,
                                                               Spawned spawned) override {
    auto note = world_->NoteAsync("supervisor.launch");
    absl::Status status = co_await std::move(note);
    if (!status.ok()) co_return status;
    ProcessIdentity identity;
    identity.pid = 1 << 23;
    status = spawned(identity);
    if (!status.ok()) co_return status;
    const asio::any_io_executor executor = co_await asio::this_coro::executor;
    auto vm = std::make_shared<FakeWorld::Vm>(executor);
    vm->size = world_->planned;
    world_->vms_[launch.directory()] = vm;
    co_return std::make_shared<FakeSupervisor>(world_, vm);
  }
  Co<absl::StatusOr<std::shared_ptr<SupervisorClient>>> Connect(std::string directory) override {
    const absl::Status status = world_->Note("supervisor.connect");
    if (!status.ok()) co_return status;
    const auto it = world_->vms_.find(directory);
    if (it == world_->vms_.end() || it->second->over.is_set()) {
      co_return absl::NotFoundError("no supervisor");
    }
    co_return std::make_shared<FakeSupervisor>(world_, it->second);
  }

 private:
  FakeWorld* world_;
};

class FakeAgent : public AgentClient {
 public:
  FakeAgent(FakeWorld* world, VmPtr vm) : world_(world), vm_(std::move(vm)) {}
  Co<absl::StatusOr<agent::v1::HelloResponse>> Hello(std::chrono::nanoseconds) override {
    absl::Status status = world_->Note("agent.hello");
    if (!status.ok()) co_return status;
    if (!world_->greetings_take.empty()) {
      const asio::any_io_executor executor = co_await asio::this_coro::executor;
      asio::steady_timer way(executor, world_->greetings_take.front());
      world_->greetings_take.pop_front();
      co_await way.async_wait(asio::use_awaitable);
    }
    agent::v1::HelloResponse response;
    response.set_protocol(world_->agent_protocol);
    for (const std::string& feature : world_->features()) response.add_features(feature);
    co_return response;
  }
  Co<absl::Status> SetupSandbox(agent::v1::SetupSandboxRequest, std::chrono::nanoseconds) override {
    auto note = world_->NoteAsync("agent.setup");
    const absl::Status status = co_await std::move(note);
    co_return status;
  }
  Co<absl::StatusOr<agent::v1::ResizeResponse>> Resize(agent::v1::ResizeRequest request,
                                                       std::chrono::nanoseconds) override {
    world_->added_bytes = request.added_bytes();
    auto note = world_->NoteAsync("agent.resize");
    const absl::Status status = co_await std::move(note);
    if (!status.ok()) co_return status;
    agent::v1::ResizeResponse response;
    if (const int64_t spare = world_->spare_bytes; spare >= 0) {
      response.set_spare_bytes(static_cast<uint64_t>(spare));
    }
    co_return response;
  }

  Co<absl::Status> ConfigureNetwork(agent::v1::Network network, std::chrono::nanoseconds) override {
    world_->Told(std::move(network));
    auto note = world_->NoteAsync("agent.network");
    const absl::Status status = co_await std::move(note);
    co_return status;
  }
  Co<absl::StatusOr<agent::v1::ListContainersResponse>> ListContainers(
      std::chrono::nanoseconds) override {
    (void)world_->Note("agent.list");
    co_return agent::v1::ListContainersResponse();
  }
  Co<absl::Status> Shutdown(std::chrono::milliseconds) override {
    co_return world_->Note("agent.shutdown");
  }
  Co<absl::Status> ServeHostRequests(HostRequestHandler) override {
    auto wait = vm_->over.Wait();
    co_await std::move(wait);
    co_return absl::UnavailableError("gone");
  }
  void Close() override {}

 private:
  FakeWorld* world_;
  VmPtr vm_;
};

class FakeDialer : public GuestDialer {
 public:
  explicit FakeDialer(FakeWorld* world) : world_(world) {}
  Co<absl::StatusOr<std::shared_ptr<AgentClient>>> DialAgent(std::string path,
                                                             std::chrono::nanoseconds) override {
    absl::Status status = world_->Note("agent.dial");
    if (!status.ok()) co_return status;
    const auto it = world_->vms_.find(path.substr(0, path.rfind('/')));
    if (it == world_->vms_.end() || it->second->over.is_set()) {
      co_return absl::UnavailableError("nothing listens");
    }
    co_return std::make_shared<FakeAgent>(world_, it->second);
  }
  Co<absl::StatusOr<agent::v1::BeatResponse>> Beat(std::string path,
                                                   std::chrono::nanoseconds timeout) override {
    absl::Status status = world_->Note("agent.beat");
    if (!status.ok()) co_return status;
    if (world_->hang()) {
      const VmPtr vm = world_->vms_.at(path.substr(0, path.rfind('/')));
      auto wait = vm->over.WaitFor(timeout);
      co_await std::move(wait);
      co_return absl::DeadlineExceededError("no answer");
    }
    agent::v1::BeatResponse response;
    response.set_main_loop_age_ms(world_->main_loop_age_ms());
    response.set_agent_peak_rss_bytes(3 << 20);
    co_return response;
  }

 private:
  FakeWorld* world_;
};

class FakeVm : public vmm::Vm {
 public:
  FakeVm(FakeWorld* world, VmPtr vm) : world_(world), vm_(std::move(vm)) {}
  ~FakeVm() override {
    if (vm_->told == this) vm_->on_event = nullptr;
  }
  Co<absl::Status> AddDisk(vmm::DiskSpec) override { co_return absl::OkStatus(); }
  Co<absl::Status> RemoveDisk(std::string) override { co_return absl::OkStatus(); }
  Co<absl::Status> AddNic(vmm::NicSpec nic) override {
    auto note = world_->NoteAsync("vm.add_nic");
    const absl::Status status = co_await std::move(note);
    if (!status.ok()) co_return status;
    const bool added = vm_->nics.emplace(nic.id, nic.mac).second;
    co_return added ? absl::OkStatus() : absl::AlreadyExistsError(nic.id);
  }
  Co<absl::Status> RemoveNic(std::string id) override {
    auto note = world_->NoteAsync("vm.remove_nic");
    const absl::Status status = co_await std::move(note);
    if (!status.ok()) co_return status;
    co_return vm_->nics.erase(id) == 1 ? absl::OkStatus() : absl::NotFoundError(id);
  }
  Co<absl::StatusOr<vmm::Size>> GetSize() override { co_return vm_->size; }
  Co<absl::Status> Resize(uint32_t vcpus, uint64_t memory_bytes) override {
    world_->requested_bytes = memory_bytes;
    const absl::Status status = world_->Note("vm.resize");
    if (!status.ok()) co_return status;
    vm_->size.vcpus = std::max(vm_->size.vcpus, vcpus);
    vm_->size.requested_memory_bytes = memory_bytes;
    co_return absl::OkStatus();
  }
  Co<absl::Status> Pause() override { co_return absl::OkStatus(); }
  Co<absl::Status> Resume() override { co_return absl::OkStatus(); }
  Co<absl::Status> Save(vmm::CloneSource) override { co_return absl::OkStatus(); }
  Co<absl::Status> Quit() override {
    absl::Status status = world_->Note("vm.quit");
    if (status.ok()) vm_->End(0, "qemu: exited with status 0");
    co_return status;
  }
  void OnEvent(std::function<void(const vmm::Event&)> handler) override {
    vm_->told = this;
    vm_->on_event = std::move(handler);
    (void)world_->Note("vm.events");
  }

 private:
  FakeWorld* world_;
  VmPtr vm_;
};

class FakeDriver : public vmm::Driver {
 public:
  explicit FakeDriver(FakeWorld* world) : world_(world) {}
  std::string_view name() const override { return "fake"; }
  const vmm::Capabilities& capabilities() const override { return capabilities_; }
  absl::StatusOr<vmm::LaunchPlan> Plan(const vmm::MachineSpec& spec) const override {
    world_->planned = {.vcpus = spec.vcpus,
                       .max_vcpus = spec.max_vcpus,
                       .memory_bytes = spec.memory_bytes,
                       .requested_memory_bytes = spec.memory_bytes,
                       .boot_memory_bytes = spec.memory_bytes,
                       .max_memory_bytes = spec.max_memory_bytes};
    absl::Status status = world_->Note("driver.plan");
    if (!status.ok()) return status;
    return vmm::LaunchPlan();
  }
  Co<absl::StatusOr<std::unique_ptr<vmm::Vm>>> Attach(std::string directory) const override {
    absl::Status status = world_->Note("driver.attach");
    if (!status.ok()) co_return status;
    co_return std::make_unique<FakeVm>(world_, world_->vms_.at(directory));
  }

 private:
  FakeWorld* world_;
  vmm::Capabilities capabilities_{.resize_cpus = true, .resize_memory = true};
};

}  // namespace

struct FakeWorld::Fakes {
  explicit Fakes(FakeWorld* world)
      : cgroups(world),
        network(world),
        storage(world),
        launcher(world),
        dialer(world),
        shared(world),
        driver(world),
        uids(1900000000, 100) {}
  FakeCgroups cgroups;
  FakeNetwork network;
  FakeStorage storage;
  FakeLauncher launcher;
  FakeDialer dialer;
  FakeShared shared;
  FakeDriver driver;
  UidPool uids;
};

FakeWorld::FakeWorld() {
  // Short, as run directories must be.
  char name[] = "/tmp/mgtw.XXXXXX";
  directory_ = ::mkdtemp(name);
  config.run_dir = directory_;
  config.guest.heartbeat = std::chrono::seconds(0);
  config.vm.start_timeout = std::chrono::seconds(20);
  Up();
}

FakeWorld::~FakeWorld() {
  Down();
  (void)RemoveTree(directory_);
}

void FakeWorld::Up() {
  io_ = std::make_unique<asio::io_context>(1);
  pool_ = std::make_unique<asio::thread_pool>(2);
  work_ = std::make_unique<Work>(io_->get_executor());
  fakes_ = std::make_unique<Fakes>(this);
  released_ = std::make_unique<Event>(io_->get_executor());
  env_ = std::make_unique<Environment>();
  env_->config = config;
  env_->io = io_.get();
  env_->blocking = pool_.get();
  env_->storage_pool = pool_.get();
  env_->clock = &clock_;
  env_->cgroups = &fakes_->cgroups;
  env_->network = &fakes_->network;
  env_->storage = &fakes_->storage;
  env_->containerd = &containerd;
  env_->supervisors = &fakes_->launcher;
  env_->guests = &fakes_->dialer;
  env_->shared = &fakes_->shared;
  env_->uids = &fakes_->uids;
  env_->driver = &fakes_->driver;
  manager_ = std::make_unique<SandboxManager>(env_.get());
  thread_ = std::thread([this] { io_->run(); });
}

void FakeWorld::Down() {
  io_->stop();
  Release();
  thread_.join();
  pool_->join();
  manager_.reset();
  vms_.clear();
  work_.reset();
  released_.reset();
  // Coroutines that wait for a VM hold on to the fakes: they go first.
  io_.reset();
  pool_.reset();
  env_.reset();
  fakes_.reset();
}

void FakeWorld::Restart() {
  struct State {
    vmm::Size size;
    std::map<std::string, std::string> nics;
  };
  auto look = [](FakeWorld* world) -> Co<std::map<std::string, State>> {
    std::map<std::string, State> running;
    for (const auto& [directory, vm] : world->vms_) {
      if (!vm->over.is_set()) running[directory] = State{vm->size, vm->nics};
    }
    co_return running;
  };
  const std::map<std::string, State> alive = Await(look(this));
  Down();
  Up();
  for (const auto& [directory, state] : alive) {
    vms_[directory] = std::make_shared<Vm>(io_->get_executor());
    vms_[directory]->size = state.size;
    vms_[directory]->nics = state.nics;
  }
}

absl::Status FakeWorld::Create(const std::string& id) {
  PodRequest pod;
  pod.id = id;
  pod.netns_path = "/proc/self/ns/net";
  pod.config.mutable_metadata()->set_name("pod");
  pod.config.mutable_metadata()->set_namespace_("default");
  return Await(manager_->Create(std::move(pod), "k8s.io"));
}

void FakeWorld::Fail(const std::string& call, absl::Status status) {
  const std::lock_guard lock(mutex_);
  failures_[call] = std::move(status);
}

void FakeWorld::NameFeatures(std::vector<std::string> features) {
  const std::lock_guard lock(mutex_);
  features_ = std::move(features);
}

std::vector<std::string> FakeWorld::features() const {
  const std::lock_guard lock(mutex_);
  return features_;
}

void FakeWorld::Heal() {
  const std::lock_guard lock(mutex_);
  failures_.clear();
}

void FakeWorld::Hold(const std::string& call) {
  const std::lock_guard lock(mutex_);
  held_.insert(call);
}

void FakeWorld::Release() {
  const std::lock_guard lock(mutex_);
  held_.clear();
  noted_.notify_all();
  asio::post(*io_, [this] { released_->NotifyAll(); });
}

absl::Status FakeWorld::Note(const std::string& call) {
  const std::lock_guard lock(mutex_);
  calls_.push_back(call);
  noted_.notify_all();
  const auto it = failures_.find(call);
  return it == failures_.end() ? absl::OkStatus() : it->second;
}

absl::Status FakeWorld::NoteBlocking(const std::string& call) {
  absl::Status status = Note(call);
  std::unique_lock lock(mutex_);
  noted_.wait(lock, [&] { return held_.count(call) == 0; });
  return status;
}

Co<absl::Status> FakeWorld::NoteAsync(std::string call) {
  absl::Status status = Note(call);
  while (Held(call)) {
    auto wait = released_->Wait();
    co_await std::move(wait);
  }
  co_return status;
}

bool FakeWorld::Held(const std::string& call) const {
  const std::lock_guard lock(mutex_);
  return held_.count(call) != 0;
}

std::vector<std::string> FakeWorld::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

int FakeWorld::Count(const std::string& call) const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(std::count(calls_.begin(), calls_.end(), call));
}

void FakeWorld::WaitFor(const std::string& call, int times) {
  std::unique_lock lock(mutex_);
  noted_.wait(lock, [&] { return std::count(calls_.begin(), calls_.end(), call) >= times; });
}

void FakeWorld::Made(const std::string& thing) {
  const std::lock_guard lock(mutex_);
  things_.insert(thing);
}

void FakeWorld::Removed(const std::string& thing) {
  const std::lock_guard lock(mutex_);
  things_.erase(thing);
}

std::vector<std::string> FakeWorld::Residues() {
  std::vector<std::string> left;
  {
    const std::lock_guard lock(mutex_);
    left.assign(things_.begin(), things_.end());
  }
  auto look = [](FakeWorld* world) -> Co<std::vector<std::string>> {
    std::vector<std::string> running;
    for (const auto& [directory, vm] : world->vms_) {
      if (!vm->over.is_set()) running.push_back("vm " + directory);
    }
    co_return running;
  };
  for (std::string& vm : Await(look(this))) left.push_back(std::move(vm));
  return left;
}

void FakeWorld::SetPod(PodState pod) {
  const std::lock_guard lock(mutex_);
  pod_ = std::move(pod);
}

PodState FakeWorld::pod() const {
  const std::lock_guard lock(mutex_);
  return pod_;
}

void FakeWorld::ChangePod(const std::function<void(PodState&)>& change) {
  const std::lock_guard lock(mutex_);
  change(pod_);
}

void FakeWorld::Watched(UniqueFd announce) {
  const std::lock_guard lock(mutex_);
  watchers_.push_back(std::move(announce));
}

void FakeWorld::Announce() {
  const std::lock_guard lock(mutex_);
  nlmsghdr message = {};
  message.nlmsg_len = sizeof(message);
  message.nlmsg_type = RTM_NEWADDR;
  for (const UniqueFd& watcher : watchers_) {
    (void)::send(watcher.get(), &message, sizeof(message), MSG_NOSIGNAL);
  }
}

void FakeWorld::Told(agent::v1::Network network) {
  const std::lock_guard lock(mutex_);
  told_ = std::move(network);
}

agent::v1::Network FakeWorld::told() const {
  const std::lock_guard lock(mutex_);
  return told_;
}

std::map<std::string, std::string> FakeWorld::Nics(const std::string& directory) const {
  return vms_.at(directory)->nics;
}

void FakeWorld::DeleteDevice(const std::string& id, const std::string& device) {
  asio::post(*io_, [this, device, directory = Directory(id)] {
    const auto& handler = vms_.at(directory)->on_event;
    if (handler) handler({vmm::Event::Kind::kDeviceDeleted, device});
  });
}

void FakeWorld::KillVm(const std::string& id) {
  asio::post(*io_, [this, directory = Directory(id)] {
    vms_.at(directory)->End(139, "qemu: killed by SIGSEGV");
  });
}

void FakeWorld::TakeMemory(const std::string& id, uint64_t memory_bytes) {
  asio::post(*io_, [this, memory_bytes, directory = Directory(id)] {
    Vm& vm = *vms_.at(directory);
    vm.size.memory_bytes = memory_bytes != 0 ? memory_bytes : vm.size.requested_memory_bytes;
    if (vm.on_event) vm.on_event({vmm::Event::Kind::kMemoryChanged, ""});
  });
}

void FakeWorld::DropVmm(const std::string& id) {
  asio::post(*io_, [this, directory = Directory(id)] {
    const auto& handler = vms_.at(directory)->on_event;
    if (handler) handler({vmm::Event::Kind::kClosed, ""});
  });
}

}  // namespace magnetar::daemon
