#pragma once

#include <gtest/gtest.h>

#include <boost/asio/thread_pool.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "guest-agent/task/task_connection.h"
#include "guest-agent/task/task_manager.h"
#include "guest-agent/testing/fakes.h"
#include "guest-agent/testing/loop.h"
#include "guest-agent/testing/temp_dir.h"

namespace magnetar::guest {

namespace v3 = containerd::task::v3;
using testing::Loop;

// A TaskManager among fakes, and the calls of containerd on its container "c".
inline constexpr uint32_t kPid = 777;

inline std::string Uri(const std::string& id) {
  return absl::StrCat("ttrpc+hvsock:///s?streaming_id=", id);
}

class TaskTest : public ::testing::Test {
 protected:
  TaskTest()
      : reaper_(loop_.executor()),
        streams_(loop_.executor()),
        events_(loop_.executor()),
        tasks_(loop_.executor(), Environment()),
        connections_(loop_.executor(), tasks_, streams_) {
    reaper_.Start();
    EXPECT_TRUE(events_.Start().ok());
    cgroup_.Write("pod/c/memory.events", "oom_kill 0\n");
    cgroup_.Write("pod/c/cgroup.kill", "");
    cgroup_.Write("pod/c/cgroup.freeze", "");
    cgroup_.Write("pod/c/cgroup.events", "populated 1\nfrozen 1\n");
    cgroup_.Write("pod/c/memory.stat", "anon 1234\n");
    host_.answer.set_spec(R"({"linux":{"cgroupsPath":"/pod/c","namespaces":[{"type":"pid"}]}})");
    runtime_.commands["c"] = "exit 3";
  }
  ~TaskTest() override {
    reaper_.Stop();
    events_.Stop();
    blocking_.join();
    counters_.join();
  }

  TaskEnvironment Environment() {
    TaskEnvironment out;
    out.runtime = &runtime_;
    out.reaper = &reaper_;
    out.streams = &streams_;
    out.host = &host_;
    out.mounts = &mounts_;
    out.cgroup_events = &events_;
    out.blocking = &blocking_;
    out.counters = &counters_;
    out.vmm_pid = [this] { return vmm_pid_; };
    out.hold_pid_namespace = [this] {
      ++pid_namespaces_;
      return absl::OkStatus();
    };
    out.containers = bundles_ / "containers";
    out.consoles = bundles_.path();
    out.cgroup_root = cgroup_.path();
    return out;
  }

  static v3::CreateTaskRequest CreateRequest(const std::string& id, bool output = false) {
    v3::CreateTaskRequest request;
    request.set_id(id);
    request.set_bundle("/host/b");
    if (output) {
      request.set_stdout(Uri(id + "-stdout"));
      request.set_stdin(Uri(id + "-stdin"));
    }
    request.add_rootfs()->set_type("overlay");
    return request;
  }
  absl::Status Create(const std::string& id = "c", bool output = false) {
    const auto response = loop_.Run(tasks_.Create(CreateRequest(id, output)));
    if (response.ok()) {
      EXPECT_EQ(response->pid(), kPid);
    }
    return response.status();
  }
  absl::Status Start(const std::string& exec = "") {
    v3::StartRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.Start(request)).status();
  }
  // Begins a call whose outcome lands in `status`.
  template <typename Response>
  void Begin(Co<absl::StatusOr<Response>> call, std::optional<absl::Status>* status) {
    status->reset();
    asio::co_spawn(loop_.context, std::move(call),
                   [status](std::exception_ptr, absl::StatusOr<Response> response) {
                     *status = response.status();
                   });
  }
  // Begins a Create that hangs in the daemon until `host_.answering` is set.
  void BeginCreate(std::optional<absl::Status>* status) {
    host_.answering = std::make_shared<Event>(loop_.executor());
    Begin(tasks_.Create(CreateRequest("c")), status);
    loop_.Until([this] { return !host_.prepared.empty(); });
  }
  absl::Status Exec(const std::string& exec, uint64_t connection = 1) {
    v3::ExecProcessRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    request.mutable_spec()->set_value(R"({"apparmorProfile":"host's","args":["x"]})");
    return loop_.Run(tasks_.Exec(request, connection)).status();
  }
  absl::StatusOr<v3::WaitResponse> Wait(const std::string& exec = "") {
    v3::WaitRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.Wait(request));
  }
  absl::StatusOr<v3::DeleteResponse> Delete(const std::string& exec = "") {
    v3::DeleteRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.Delete(request));
  }
  absl::StatusOr<v3::StateResponse> State(const std::string& exec = "") {
    v3::StateRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    return loop_.Run(tasks_.State(request));
  }
  absl::Status Kill(uint32_t signal, const std::string& exec = "") {
    v3::KillRequest request;
    request.set_id("c");
    request.set_exec_id(exec);
    request.set_signal(signal);
    return loop_.Run(tasks_.Kill(request)).status();
  }

  // The events since the last call: "EXITED c/exec 3, ...".
  std::string Told() {
    std::vector<std::string> out;
    for (const agent::v1::GuestEvent& event : std::exchange(host_.events, {})) {
      std::string line =
          absl::StrCat(agent::v1::GuestEvent::Kind_Name(event.kind()), " ", event.container_id());
      if (!event.exec_id().empty()) absl::StrAppend(&line, "/", event.exec_id());
      if (event.exited_at_ns() != 0) absl::StrAppend(&line, " ", event.exit_status());
      out.push_back(std::move(line));
    }
    return absl::StrJoin(out, ", ");
  }

  Loop loop_;
  testing::TempDir bundles_, cgroup_;
  testing::FakeRuntime runtime_;
  testing::FakeHost host_;
  testing::FakeMounts mounts_;
  asio::thread_pool blocking_{1};
  asio::thread_pool counters_{1};
  uint32_t vmm_pid_ = kPid;
  int pid_namespaces_ = 0;
  Reaper reaper_;
  StreamRegistry streams_;
  CgroupEvents events_;
  TaskManager tasks_;
  TaskConnections connections_;
};

}  // namespace magnetar::guest
