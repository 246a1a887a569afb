#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "magnetar/files.h"
#include "src/supervisor/exit_file.h"
#include "src/supervisor/supervisor.h"

namespace magnetar::supervisor {
namespace {

v1::Launch Valid() {
  v1::Launch launch;
  launch.set_sandbox_id("s1");
  launch.set_directory("/run/x");
  v1::Process& vmm = *launch.add_processes();
  vmm.set_name("qemu");
  vmm.set_vmm(true);
  vmm.add_argv("/bin/true");
  launch.mutable_transport()->mutable_mux()->set_fd(7);
  launch.set_control_listener_fd(8);
  launch.set_vsock_listener_fd(9);
  return launch;
}

TEST(Launch, ValidOnes) {
  EXPECT_TRUE(ValidateLaunch(Valid()).ok());
  v1::Launch native = Valid();
  native.mutable_transport()->mutable_native();
  native.set_vsock_listener_fd(0);
  EXPECT_TRUE(ValidateLaunch(native).ok());
}

TEST(Launch, NamesTheBadField) {
  const auto expect = [](const v1::Launch& launch, const char* field) {
    const absl::Status status = ValidateLaunch(launch);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_NE(status.ToString().find(field), std::string::npos) << status;
  };
  v1::Launch launch = Valid();
  launch.set_sandbox_id("../x");
  expect(launch, "sandbox_id");
  launch = Valid();
  launch.set_directory("run");
  expect(launch, "directory");
  launch = Valid();
  launch.mutable_processes(0)->set_vmm(false);
  expect(launch, "0 VMMs");
  launch = Valid();
  *launch.add_processes() = launch.processes(0);
  expect(launch, "2 VMMs");
  launch = Valid();
  launch.mutable_processes(0)->set_argv(0, "true");
  expect(launch, "qemu");
  launch = Valid();
  launch.mutable_processes(0)->add_descriptors()->set_source(2);
  expect(launch, "descriptor 2");
  launch = Valid();
  launch.add_guest_streams()->set_port(7);
  expect(launch, "guest_streams");
  launch = Valid();
  launch.add_guest_streams()->set_fd(9);
  expect(launch, "guest_streams");
  launch = Valid();
  launch.clear_control_listener_fd();
  expect(launch, "control_listener_fd");
  launch = Valid();
  launch.clear_vsock_listener_fd();
  expect(launch, "vsock_listener_fd");
  launch = Valid();
  launch.mutable_transport()->mutable_mux()->clear_fd();
  expect(launch, "mux");
  launch = Valid();
  launch.mutable_transport()->mutable_kernel_vsock()->set_cid(2);
  expect(launch, "kernel_vsock");
}

TEST(Launch, IsReadFromADescriptor) {
  const int fd = ::memfd_create("launch", MFD_CLOEXEC);
  const std::string text = Valid().SerializeAsString();
  ASSERT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  ::lseek(fd, 0, SEEK_SET);
  auto launch = ReadLaunch(fd);
  ASSERT_TRUE(launch.ok()) << launch.status();
  EXPECT_EQ(launch->sandbox_id(), "s1");
  EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
}

TEST(Launch, GarbageIsRefused) {
  const int fd = ::memfd_create("launch", MFD_CLOEXEC);
  ASSERT_EQ(::write(fd, "\xff\xff\xff", 3), 3);
  ::lseek(fd, 0, SEEK_SET);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadLaunch(fd).status()));
  EXPECT_FALSE(ReadLaunch(9999).ok());
}

TEST(ExitFile, IsJsonWhateverTheTextHolds) {
  v1::ExitRecord record;
  record.set_status(137);
  record.set_exited_at_ns(1700000000123456789);
  record.set_reason("qemu: killed by SIGKILL");
  record.set_last_lines("a \"b\"\n\xff\x01");
  record.set_unkillable(true);
  EXPECT_EQ(ExitJson(record),
            "{\"exited_at_ns\":1700000000123456789,\"last_lines\":\"a \\\"b\\\"\\n\xef\xbf\xbd"
            "\\u0001\",\"reason\":\"qemu: killed by SIGKILL\",\"status\":137,"
            "\"unkillable\":true}\n");
}

TEST(ExitFile, IsWrittenWhole) {
  char name[] = "/tmp/exit-file.XXXXXX";
  const std::string directory = ::mkdtemp(name);
  v1::ExitRecord record;
  record.set_status(1);
  ASSERT_TRUE(WriteFileAtomically(directory + "/exit.json", "an earlier VM's").ok());
  auto file = ExitFile::Create(directory);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(ReadFile(directory + "/exit.json").value(), "");
  ASSERT_TRUE(file->Write(record).ok());
  EXPECT_EQ(ReadFile(directory + "/exit.json").value(), ExitJson(record));
  EXPECT_TRUE(RemoveTree(directory).ok());
}

}  // namespace
}  // namespace magnetar::supervisor
