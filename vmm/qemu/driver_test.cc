#include "vmm/qemu/driver.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"

namespace magnetar::vmm::qemu {
namespace {

using testing::HasSubstr;

// Plans only: nothing is started, and any program and files will do.
class DriverTest : public testing::Test {
 protected:
  DriverTest() {
    char name[] = "/tmp/qemu-driver.XXXXXX";
    directory_ = ::mkdtemp(name);
    config_.program = "/bin/true";
    config_.virtiofsd = "/bin/true";
    for (const char* file : {"kernel", "initrd", "image"}) {
      EXPECT_TRUE(WriteFileAtomically(absl::StrCat(directory_, "/", file), "x", 0644).ok());
    }
    spec_.sandbox_id = "s1";
    spec_.directory = directory_;
    spec_.memory_bytes = 256 << 20;
    spec_.kernel_path = absl::StrCat(directory_, "/kernel");
    spec_.initrd_path = absl::StrCat(directory_, "/initrd");
    spec_.image_path = absl::StrCat(directory_, "/image");
    spec_.shared_directory = absl::StrCat(directory_, "/shared");
    spec_.uid = ::geteuid();
    spec_.gid = ::getegid();
  }
  ~DriverTest() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  absl::StatusOr<LaunchPlan> Plan() { return MakeDriver(config_)->Plan(spec_); }
  void ExpectFailure(absl::StatusCode code, const std::string& text) {
    const absl::Status status = Plan().status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  std::string directory_;
  Config config_;
  MachineSpec spec_;
};

TEST_F(DriverTest, PlansTheFileServerBeforeTheVmm) {
  auto plan = Plan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->processes.size(), 2u);
  EXPECT_EQ(plan->processes[0].name(), "virtiofsd");
  EXPECT_FALSE(plan->processes[0].vmm());
  EXPECT_EQ(plan->processes[1].name(), "qemu");
  EXPECT_TRUE(plan->processes[1].vmm());
  EXPECT_TRUE(plan->transport.has_mux());
  // Every source is a descriptor that the plan keeps open.
  for (const auto& process : plan->processes) {
    for (const auto& d : process.descriptors()) {
      const bool owned = std::any_of(plan->descriptors.begin(), plan->descriptors.end(),
                                     [&d](const UniqueFd& fd) { return fd.get() == d.source(); });
      EXPECT_TRUE(owned) << d.source();
    }
  }
  struct stat st;
  EXPECT_EQ(::stat(absl::StrCat(directory_, "/qmp.sock").c_str(), &st), 0);
  // The one connection has been made: nobody else finds the socket.
  EXPECT_NE(::stat(absl::StrCat(directory_, "/vmm/virtiofs.sock").c_str(), &st), 0);
}

// 9p has no part in the machine, whose memory is then the VMM's own.
TEST_F(DriverTest, SharesItsMemoryWithNobodyButAFileServer) {
  spec_.shared_directory.clear();
  auto plan = Plan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->processes.size(), 1u);
  for (const std::string& argument : plan->processes[0].argv()) {
    EXPECT_THAT(argument, testing::Not(testing::AnyOf(HasSubstr("memfd"), HasSubstr("vhost-user"),
                                                      HasSubstr("share=on"))));
  }
}

TEST_F(DriverTest, PlansTwiceInTheSameDirectory) {
  EXPECT_TRUE(Plan().ok());
  EXPECT_TRUE(Plan().ok());
}

TEST_F(DriverTest, BorrowsTheTap) {
  UniqueFd tap(::open("/dev/null", O_RDWR | O_CLOEXEC));
  spec_.nics = {{.id = "nic0", .mac = "02:00:00:00:00:01", .tap_fd = tap.get()}};
  auto plan = Plan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto& descriptors = plan->processes[1].descriptors();
  EXPECT_EQ(descriptors[descriptors.size() - 1].source(), tap.get());
}

TEST_F(DriverTest, QemuNeverGetsRootsGroup) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  config_.acceleration = Acceleration::kKvm;
  config_.kvm_device = absl::StrCat(directory_, "/kernel");
  spec_.uid = spec_.gid = 64055;
  for (const gid_t group : {gid_t{0}, gid_t{107}}) {
    ASSERT_EQ(::chown(config_.kvm_device.c_str(), 0, group), 0);
    auto plan = Plan();
    ASSERT_TRUE(plan.ok()) << plan.status();
    const auto& groups = plan->processes[1].supplementary_gids();
    if (group == 0) {
      EXPECT_EQ(groups.size(), 0);
    } else {
      EXPECT_THAT(groups, testing::ElementsAre(group));
    }
  }
}

TEST_F(DriverTest, MissingFilesAreNamed) {
  const std::string image = spec_.image_path;
  spec_.image_path = "/nonexistent/image";
  ExpectFailure(absl::StatusCode::kFailedPrecondition, "root image /nonexistent/image: No such");
  spec_.image_path = image;
  spec_.kernel_path = "/nonexistent/kernel";
  ExpectFailure(absl::StatusCode::kFailedPrecondition, "kernel /nonexistent/kernel");
  config_.program = "/nonexistent/qemu";
  ExpectFailure(absl::StatusCode::kFailedPrecondition, "QEMU /nonexistent/qemu");
}

TEST_F(DriverTest, FilesThatTheUserMayNotReadAreNamed) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  spec_.uid = spec_.gid = 64055;
  ASSERT_EQ(::chmod(spec_.initrd_path.c_str(), 0600), 0);
  ExpectFailure(absl::StatusCode::kFailedPrecondition, "not readable for the VMM's user 64055");
}

TEST_F(DriverTest, BadSpecs) {
  const MachineSpec good = spec_;
  spec_.vcpus = 0;
  ExpectFailure(absl::StatusCode::kInvalidArgument, "vCPU");
  spec_ = good;
  spec_.memory_bytes = 1;
  ExpectFailure(absl::StatusCode::kInvalidArgument, "64 MiB");
  spec_ = good;
  spec_.transport = TransportKind::kNative;
  ExpectFailure(absl::StatusCode::kInvalidArgument, "hybrid vsock");
  spec_ = good;
  spec_.transport = TransportKind::kKernelVsock;
  spec_.guest_cid = 2;
  ExpectFailure(absl::StatusCode::kInvalidArgument, "CID 2");
  spec_ = good;
  spec_.nics = {{.id = "eth0", .mac = "02:00:00:00:00:01"}};
  ExpectFailure(absl::StatusCode::kInvalidArgument, "eth0");
  spec_ = good;
  spec_.clone = CloneSource{};
  ExpectFailure(absl::StatusCode::kUnimplemented, "clones");
  spec_ = good;
  spec_.memory_file = "/dev/shm/template";
  ExpectFailure(absl::StatusCode::kUnimplemented, "templates");
  spec_ = good;
  spec_.sandbox_id = "../x";
  ExpectFailure(absl::StatusCode::kInvalidArgument, "sandbox id");
}

TEST_F(DriverTest, CapabilitiesAreWhatItDoes) {
  auto driver = MakeDriver(config_);
  EXPECT_EQ(driver->name(), "qemu");
  EXPECT_FALSE(driver->capabilities().clone);
  EXPECT_FALSE(driver->capabilities().hybrid_vsock);
  EXPECT_TRUE(driver->capabilities().hotplug_disk);
}

}  // namespace
}  // namespace magnetar::vmm::qemu
