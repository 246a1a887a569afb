// Devices that come and go in a real VM.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "vmm/test/vm_fixture.h"

namespace magnetar::vmm {
namespace {

// A tap in a netns of its own, which lives as long as the tap does.
UniqueFd MakeTap() {
  UniqueFd fd;
  std::thread([&fd] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    UniqueFd tun(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    ifreq request{};
    std::strncpy(request.ifr_name, "tap0", IFNAMSIZ - 1);
    request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
    if (::ioctl(tun.get(), TUNSETIFF, &request) == 0) fd = std::move(tun);
  }).join();
  return fd;
}

class DevicesTest : public VmFixture {
 protected:
  void Start() {
    Boot();
    if (!HasFatalFailure()) WaitReady();
    if (HasFatalFailure()) return;
    auto vm = Await(driver_->Attach(directory_));
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
  }
  double Milliseconds(std::function<absl::Status()> f) {
    const auto start = std::chrono::steady_clock::now();
    const absl::Status status = f();
    EXPECT_TRUE(status.ok()) << status;
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
  }
  std::unique_ptr<Vm> vm_;
};

TEST_F(DevicesTest, ComeAndGo) {
  UniqueFd first = MakeTap();
  if (::getenv("MAGNETAR_GUEST") != nullptr) {
    ASSERT_TRUE(first.ok());
    spec_.nics = {{.id = "nic0", .mac = "02:00:00:00:00:01", .tap_fd = first.get()}};
  }
  Start();
  if (HasFatalFailure()) return;
  UniqueFd file(
      ::open(absl::StrCat(directory_, "/disk").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::ftruncate(file.get(), 64 << 20), 0);
  for (int round = 0; round < 3; ++round) {
    std::printf("disk: add %.1f ms\n", Milliseconds([&] {
                  return Await(vm_->AddDisk({.serial = "one", .fd = file.get()}));
                }));
    absl::Status again = Await(vm_->AddDisk({.serial = "one", .fd = file.get()}));
    EXPECT_FALSE(again.ok());
    // As a daemon does that was started in between.
    vm_.reset();
    auto vm = Await(driver_->Attach(directory_));
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    std::printf("disk: remove %.1f ms\n",
                Milliseconds([&] { return Await(vm_->RemoveDisk("one")); }));
    EXPECT_TRUE(absl::IsNotFound(Await(vm_->RemoveDisk("one"))));
  }
  for (int i = 0; i < 20; ++i) {
    const std::string serial = absl::StrCat("many", i);
    UniqueFd disk(
        ::open(absl::StrCat(directory_, "/", serial).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::ftruncate(disk.get(), 1 << 20), 0);
    absl::Status status =
        Await(vm_->AddDisk({.serial = serial, .fd = disk.get(), .read_only = true}));
    EXPECT_TRUE(status.ok()) << status;
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(Await(vm_->RemoveDisk(absl::StrCat("many", i))).ok());
  }
  for (int round = 0; round < 2; ++round) {
    UniqueFd tap = MakeTap();
    std::printf("NIC: add %.1f ms\n", Milliseconds([&] {
                  return Await(
                      vm_->AddNic({.id = "nic1", .mac = "02:00:00:00:00:02", .tap_fd = tap.get()}));
                }));
    std::printf("NIC: remove %.1f ms\n",
                Milliseconds([&] { return Await(vm_->RemoveNic("nic1")); }));
  }
  std::printf("NIC of the beginning: remove %.1f ms\n",
              Milliseconds([&] { return Await(vm_->RemoveNic("nic0")); }));
  EXPECT_TRUE(Await(vm_->Pause()).ok());
  EXPECT_TRUE(Await(vm_->Resume()).ok());
  EXPECT_TRUE(Await(vm_->Quit()).ok());
  const std::string exit = ExitFileAfterEnd();
  // And not its file server, which may be the first to be reaped.
  EXPECT_TRUE(absl::StrContains(exit, "qemu: exited with status 0")) << exit;
}

// Where the daemon mounts what it shares.
TEST_F(DevicesTest, VirtiofsdHasMountsOfItsOwn) {
  Start();
  if (HasFatalFailure()) return;
  const std::string proc = absl::StrCat("/proc/", PidOf("virtiofsd"));
  struct stat ours = {}, theirs = {};
  ASSERT_EQ(::stat("/proc/self/ns/mnt", &ours), 0);
  ASSERT_EQ(::stat(absl::StrCat(proc, "/ns/mnt").c_str(), &theirs), 0);
  EXPECT_NE(ours.st_ino, theirs.st_ino);
  struct stat shared = {}, root = {};
  ASSERT_EQ(::stat(absl::StrCat(directory_, "/shared").c_str(), &shared), 0);
  ASSERT_EQ(::stat(absl::StrCat(proc, "/root").c_str(), &root), 0);
  EXPECT_EQ(shared.st_ino, root.st_ino);
}

}  // namespace
}  // namespace magnetar::vmm
