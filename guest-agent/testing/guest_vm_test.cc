// The agent in a real VM. Needs root, QEMU, virtiofsd and a built guest, whose
// folder MAGNETAR_GUEST names; without it the tests are skipped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cgroups/v2_metrics.pb.h"
#include "guest-agent/testing/test_vm.h"
#include "magnetar/ports.h"

namespace magnetar::guest::testing {
namespace {

namespace v3 = containerd::task::v3;
using Client = std::shared_ptr<ttrpc::Client>;

class GuestVmTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* guest = std::getenv("MAGNETAR_GUEST");
    if (guest == nullptr) return;
    vm_ = new TestVm(guest, "");
    vm_->ConnectDaemon();
  }
  static void TearDownTestSuite() {
    if (vm_ == nullptr) return;
    std::cerr << vm_->Console() << std::endl;
    delete vm_;
  }
  void SetUp() override {
    if (vm_ == nullptr) GTEST_SKIP() << "MAGNETAR_GUEST is not set";
  }

  static void Prepare(const std::string& id, const std::vector<std::string>& args,
                      bool terminal = false) {
    MakeBusyboxRoot(absl::StrCat(vm_->shared(), "/", id, "/rootfs"));
    vm_->prepared[id].set_spec(BusyboxSpec(id, args, terminal));
  }

  static absl::Status Create(const Client& task, const std::string& id, bool in, bool terminal) {
    v3::CreateTaskRequest request;
    request.set_id(id);
    request.set_bundle("/host/bundle");
    request.set_terminal(terminal);
    if (in) request.set_stdin(StreamUri(id + "-stdin"));
    request.set_stdout(StreamUri(id + "-stdout"));
    if (!terminal) request.set_stderr(StreamUri(id + "-stderr"));
    request.add_rootfs()->set_type("overlay");
    const auto response = vm_->Task<v3::CreateTaskResponse>(task, "Create", request);
    if (response.ok()) {
      EXPECT_EQ(response->pid(), kVmmPid);
    }
    return response.status();
  }

  static absl::Status Start(const Client& task, const std::string& id,
                            const std::string& exec = "") {
    v3::StartRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    return vm_->Task<v3::StartResponse>(task, "Start", request).status();
  }

  static absl::StatusOr<v3::WaitResponse> Wait(const Client& task, const std::string& id,
                                               const std::string& exec = "") {
    v3::WaitRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    return vm_->Task<v3::WaitResponse>(task, "Wait", request);
  }

  static absl::StatusOr<v3::DeleteResponse> Delete(const Client& task, const std::string& id,
                                                   const std::string& exec = "") {
    v3::DeleteRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    return vm_->Task<v3::DeleteResponse>(task, "Delete", request);
  }

  static absl::Status Exec(const Client& task, const std::string& id, const std::string& exec,
                           const std::vector<std::string>& args, bool in = false,
                           bool terminal = false) {
    v3::ExecProcessRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    request.set_terminal(terminal);
    if (in) request.set_stdin(StreamUri(exec + "-stdin"));
    request.set_stdout(StreamUri(exec + "-stdout"));
    if (!terminal) request.set_stderr(StreamUri(exec + "-stderr"));
    request.mutable_spec()->set_value(BusyboxProcess(args, terminal));
    return vm_->Task<wire::Empty>(task, "Exec", request).status();
  }

  static absl::Status Kill(const Client& task, const std::string& id, uint32_t signal,
                           const std::string& exec = "", bool all = false) {
    v3::KillRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    request.set_signal(signal);
    request.set_all(all);
    return vm_->Task<wire::Empty>(task, "Kill", request).status();
  }

  static TestVm* vm_;
};

TestVm* GuestVmTest::vm_ = nullptr;

TEST_F(GuestVmTest, RunsAContainerToItsEnd) {
  const Client task = vm_->Dial(kTaskPort);
  Prepare("c1", {"sh", "-c", "echo out; echo err >&2; hostname; ip -o addr; exit 42"});
  TestStream out(*vm_, "c1-stdout");
  TestStream err(*vm_, "c1-stderr");
  ASSERT_TRUE(Create(task, "c1", false, false).ok());
  EXPECT_EQ(Create(task, "c1", false, false).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(Start(task, "c1").ok());
  const std::string text = out.ReadAll();
  EXPECT_THAT(text, ::testing::StartsWith("out\nguesthost\n"));
  EXPECT_THAT(text, ::testing::HasSubstr("net7    inet 10.0.2.15/24"));
  EXPECT_THAT(text, ::testing::HasSubstr("net7    inet6 fd00::2/64"));
  EXPECT_EQ(err.ReadAll(), "err\n");
  const auto exit = Wait(task, "c1");
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->exit_status(), 42U);
  EXPECT_GT(exit->exited_at().seconds(), 1700000000);
  const auto deleted = Delete(task, "c1");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->exit_status(), 42U);
  EXPECT_EQ(deleted->pid(), kVmmPid);
  EXPECT_THAT(vm_->released, ::testing::Contains("c1"));
  EXPECT_EQ(Delete(task, "c1").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace magnetar::guest::testing
