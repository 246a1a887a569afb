#pragma once

#include <signal.h>
#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "guest-agent/agent/host_link.h"
#include "guest-agent/storage/container_mounts.h"
#include "guest-agent/task/oci_runtime.h"
#include "guest-agent/util/spawn.h"
#include "magnetar/files.h"

// In-memory stand-ins for what the tasks stand on.
namespace magnetar::guest::testing {

// A runtime whose containers are shells on this machine: `command` of the id is
// run by /bin/sh at Create (Start is only noted), `exec_command` at Exec.
class FakeRuntime : public OciRuntime {
 public:
  std::map<std::string, std::string> commands;
  absl::Status create_status, start_status, exec_status;
  std::vector<std::string> calls;
  std::string exec_process, resources;  // JSON that the last Exec and Update got

  Co<absl::StatusOr<pid_t>> Create(std::string id, std::string bundle,
                                   ProcessStdio stdio) override {
    calls.push_back(absl::StrCat("create ", id, " ", bundle));
    if (!create_status.ok()) co_return create_status;
    co_return Shell(commands[id], stdio);
  }
  Co<absl::Status> Start(std::string id) override {
    calls.push_back(absl::StrCat("start ", id));
    co_return start_status;
  }
  Co<absl::StatusOr<pid_t>> Exec(std::string id, std::string file, ProcessStdio stdio) override {
    calls.push_back(absl::StrCat("exec ", id));
    exec_process = ReadFile(file).value_or("");
    if (!exec_status.ok()) co_return exec_status;
    co_return Shell(exec_command, stdio);
  }
  Co<absl::Status> Delete(std::string id) override {
    calls.push_back(absl::StrCat("delete ", id));
    // Like the real one, it leaves no process.
    if (last_pid > 0) ::kill(last_pid, SIGKILL);
    co_return absl::OkStatus();
  }
  Co<absl::Status> Update(std::string id, std::string file) override {
    calls.push_back(absl::StrCat("update ", id));
    resources = ReadFile(file).value_or("");
    co_return absl::OkStatus();
  }

  std::string exec_command;
  pid_t last_pid = 0;

 private:
  absl::StatusOr<pid_t> Shell(const std::string& command, const ProcessStdio& stdio) {
    SpawnRequest request;
    request.argv = {"/bin/sh", "-c", command};
    request.stdin_fd = stdio.stdin_fd;
    request.stdout_fd = stdio.stdout_fd;
    request.stderr_fd = stdio.stderr_fd;
    absl::StatusOr<pid_t> pid = Spawn(request);
    if (pid.ok()) last_pid = *pid;
    return pid;
  }
};

class FakeHost : public HostLink {
 public:
  absl::Status prepare_status;
  agent::v1::PreparedContainer answer;
  std::vector<std::string> prepared, released;
  std::vector<agent::v1::GuestEvent> events;

  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(std::string container_id,
                                                           std::vector<std::string>) override {
    prepared.push_back(container_id);
    if (!prepare_status.ok()) co_return prepare_status;
    co_return answer;
  }
  Co<void> Release(std::string container_id) override {
    released.push_back(container_id);
    co_return;
  }
  void Publish(agent::v1::GuestEvent event) override { events.push_back(std::move(event)); }
};

class FakeMounts : public ContainerMounts {
 public:
  absl::Status mount_status;
  std::vector<std::string> mounted, unmounted;
  absl::Status MountAll(const std::string& id, const std::vector<agent::v1::Storage>&) override {
    mounted.push_back(id);
    return mount_status;
  }
  absl::Status UnmountAll(const std::string& id) override {
    unmounted.push_back(id);
    return absl::OkStatus();
  }
};

}  // namespace magnetar::guest::testing
