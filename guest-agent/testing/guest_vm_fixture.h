#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "guest-agent/testing/test_vm.h"
#include "magnetar/ports.h"

namespace magnetar::guest::testing {

namespace v3 = containerd::task::v3;
using Client = std::shared_ptr<ttrpc::Client>;

// The agent in a real VM, one for all tests of a suite. Needs root, QEMU, virtiofsd and a built
// guest, whose folder MAGNETAR_GUEST names; without it the tests are skipped.
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

  // Creates and starts a container that sleeps until it is killed.
  static Client Sleeper(const std::string& id) {
    Client task = vm_->Dial(kTaskPort);
    Prepare(id, {"sleep", "1000"});
    EXPECT_EQ(Create(task, id, false, false), absl::OkStatus());
    EXPECT_EQ(Start(task, id), absl::OkStatus());
    return task;
  }

  static void KillAndDelete(const Client& task, const std::string& id) {
    EXPECT_EQ(Kill(task, id, 9, "", true), absl::OkStatus());
    const auto exit = Wait(task, id);
    EXPECT_TRUE(exit.ok());
    if (exit.ok()) {
      EXPECT_EQ(exit->exit_status(), 137U);
    }
    EXPECT_EQ(Delete(task, id).status(), absl::OkStatus());
  }

  static absl::StatusOr<v3::StateResponse> State(const Client& task, const std::string& id,
                                                 const std::string& exec = "") {
    v3::StateRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    return vm_->Task<v3::StateResponse>(task, "State", request);
  }

  // Runs a command in a container to its end and returns what it wrote.
  static std::string ExecOutput(const Client& task, const std::string& id, const std::string& exec,
                                const std::vector<std::string>& args) {
    TestStream out(*vm_, exec + "-stdout");
    TestStream err(*vm_, exec + "-stderr");
    EXPECT_EQ(Exec(task, id, exec, args), absl::OkStatus());
    EXPECT_EQ(Start(task, id, exec), absl::OkStatus());
    std::string text = out.ReadAll();
    text += err.ReadAll();
    EXPECT_EQ(Wait(task, id, exec).status(), absl::OkStatus());
    EXPECT_EQ(Delete(task, id, exec).status(), absl::OkStatus());
    return text;
  }

  static inline TestVm* vm_ = nullptr;
};

}  // namespace magnetar::guest::testing
