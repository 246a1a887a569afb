#include "vmm/test/vm_fixture.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/hybrid_vsock.h"
#include "magnetar/ports.h"
#include "magnetar/supervisor_launch.h"
#include "vmm/qemu/driver.h"

namespace magnetar::vmm {
namespace {

// Any that owns nothing.
constexpr uint32_t kVmmUid = 64055;

UniqueFd ConnectUnix(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fd.reset();
  return fd;
}

}  // namespace

void VmFixture::SetUp() {
  const char* guest = std::getenv("MAGNETAR_GUEST");
  if (guest == nullptr || std::getenv("MAGNETAR_SUPERVISOR") == nullptr || ::geteuid() != 0) {
    GTEST_SKIP() << "needs root, MAGNETAR_GUEST and MAGNETAR_SUPERVISOR";
  }
  char name[] = "/tmp/magnetar-vm.XXXXXX";
  directory_ = ::mkdtemp(name);
  const std::string shared = absl::StrCat(directory_, "/shared");
  ASSERT_TRUE(MakeDirectories(shared).ok());
  ASSERT_EQ(::mount(shared.c_str(), shared.c_str(), nullptr, MS_BIND, nullptr), 0);
  ASSERT_EQ(::mount(nullptr, shared.c_str(), nullptr, MS_SHARED, nullptr), 0);
  spec_.sandbox_id = "vmtest";
  spec_.directory = directory_;
  spec_.memory_bytes = 256 << 20;
  spec_.kernel_path = absl::StrCat(guest, "/vmlinux");
  spec_.initrd_path = absl::StrCat(guest, "/initrd.img");
  spec_.image_path = absl::StrCat(guest, "/root.erofs");
  spec_.shared_directory = shared;
  spec_.uid = kVmmUid;
  spec_.gid = kVmmUid;
  driver_ = qemu::MakeDriver({});
}

void VmFixture::TearDown() {
  if (directory_.empty()) return;
  if (HasFailure() && client_ != nullptr) std::fputs(Console().c_str(), stderr);
  client_.reset();
  if (supervisor_.running()) {
    EXPECT_TRUE(supervisor_.Signal(SIGTERM).ok());
    EXPECT_TRUE(supervisor_.WaitBlocking().ok());
  }
  ::umount2(absl::StrCat(directory_, "/shared").c_str(), MNT_DETACH);
  EXPECT_TRUE(RemoveTree(directory_).ok());
}

void VmFixture::Boot() {
  auto plan = driver_->Plan(spec_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  auto control = ListenUnix(absl::StrCat(directory_, "/supervisor.sock"));
  auto vsock = ListenUnix(absl::StrCat(directory_, "/vm.vsock"));
  ASSERT_TRUE(control.ok() && vsock.ok());
  supervisor::v1::Launch launch;
  launch.set_sandbox_id(spec_.sandbox_id);
  launch.set_directory(directory_);
  for (const auto& process : plan->processes) *launch.add_processes() = process;
  *launch.mutable_transport() = plan->transport;
  launch.set_control_listener_fd(control->get());
  launch.set_vsock_listener_fd(vsock->get());
  if (adjust_) adjust_(launch);
  auto started = StartSupervisor(std::getenv("MAGNETAR_SUPERVISOR"), launch);
  ASSERT_TRUE(started.ok()) << started.status();
  supervisor_ = *std::move(started);
  UniqueFd socket = ConnectUnix(absl::StrCat(directory_, "/supervisor.sock"));
  ASSERT_TRUE(socket.ok());
  client_ = ttrpc::Client::Create(context_.get_executor(), std::move(socket));
}

void VmFixture::WaitReady() {
  auto ready = Supervisor<supervisor::v1::WaitReadyResponse>("WaitReady",
                                                             supervisor::v1::WaitReadyRequest());
  ASSERT_TRUE(ready.ok()) << ready.status();
}

UniqueFd VmFixture::Dial(uint32_t port) {
  auto dial =
      DialHybridVsock(absl::StrCat(directory_, "/vm.vsock"), port, std::chrono::seconds(20));
  auto fd = Await(std::move(dial));
  EXPECT_TRUE(fd.ok()) << fd.status();
  return fd.ok() ? *std::move(fd) : UniqueFd();
}

std::shared_ptr<ttrpc::Client> VmFixture::DialAgent() {
  return ttrpc::Client::Create(context_.get_executor(), Dial(kAgentPort));
}

bool VmFixture::Listens(const std::string& name) {
  return ConnectUnix(absl::StrCat(directory_, "/", name)).ok();
}

pid_t VmFixture::PidOf(const std::string& name) {
  auto state = Supervisor<supervisor::v1::StateResponse>("State", supervisor::v1::StateRequest());
  EXPECT_TRUE(state.ok()) << state.status();
  if (!state.ok()) return -1;
  for (const auto& process : state->processes()) {
    if (process.name() == name) return static_cast<pid_t>(process.pid());
  }
  return -1;
}

std::string VmFixture::Console() {
  auto console =
      Supervisor<supervisor::v1::ConsoleResponse>("Console", supervisor::v1::ConsoleRequest());
  return console.ok() ? console->data() : console.status().ToString();
}

std::string VmFixture::ExitFileAfterEnd() {
  auto exit = supervisor_.WaitBlocking();
  EXPECT_TRUE(exit.ok());
  auto text = ReadFile(absl::StrCat(directory_, "/exit.json"));
  return text.ok() ? *text : text.status().ToString();
}

}  // namespace magnetar::vmm
