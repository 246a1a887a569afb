#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "cri/runtime.pb.h"
#include "magnetar/child_process.h"
#include "src/daemon/sandbox/record.h"

namespace magnetar::ctl {

// A run directory with records as a daemon writes them.
class RunDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/ctl_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    run_dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(run_dir_); }

  void Put(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(run_dir_ + "/" + name).parent_path());
    std::ofstream(run_dir_ + "/" + name) << text;
  }

  // A sandbox whose VM is this very process.
  daemon::Record LivingRecord(const std::string& id) const {
    runtime::v1::PodSandboxConfig pod;
    pod.mutable_metadata()->set_name("web");
    pod.mutable_metadata()->set_namespace_("shop");
    (*pod.mutable_labels())["app"] = "web";
    daemon::Record record;
    record.id = id;
    record.state = "ready";
    record.vmm = "qemu";
    record.vmm_pid = static_cast<uint32_t>(::getpid());
    record.created_at_ns = 1700000000000000000;
    record.pod_config = pod.SerializeAsString();
    daemon::RecordedProcess vmm;
    vmm.name = "qemu";
    vmm.vmm = true;
    auto identity = IdentifyProcess(::getpid());
    EXPECT_TRUE(identity.ok()) << identity.status();
    if (identity.ok()) vmm.identity = *identity;
    record.processes.push_back(vmm);
    return record;
  }
  void Write(const daemon::Record& record) const {
    std::filesystem::create_directories(run_dir_ + "/" + record.id);
    const absl::Status status = daemon::WriteRecord(run_dir_ + "/" + record.id, record);
    EXPECT_TRUE(status.ok()) << status;
  }

  std::string run_dir_;
};

}  // namespace magnetar::ctl
