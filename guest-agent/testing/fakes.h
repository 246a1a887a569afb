#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "guest-agent/agent/host_link.h"
#include "guest-agent/storage/container_mounts.h"
#include "guest-agent/task/oci_runtime.h"
#include "guest-agent/util/notifier.h"
#include "guest-agent/util/spawn.h"
#include "magnetar/files.h"
#include "magnetar/unique_fd.h"

// In-memory stand-ins for what the tasks stand on.
namespace magnetar::guest::testing {

// A runtime whose containers are shells on this machine: `command` of the id is run by
// /bin/sh, which waits at Create for its Start as crun's process does, `exec_command` at Exec.
class FakeRuntime : public OciRuntime {
 public:
  std::map<std::string, std::string> commands;
  absl::Status create_status, start_status, exec_status, delete_status;
  std::vector<std::string> calls;
  std::string exec_process, resources;  // JSON that the last Exec and Update got

  Co<absl::StatusOr<pid_t>> Create(std::string id, std::string bundle,
                                   ProcessStdio stdio) override {
    calls.push_back(absl::StrCat("create ", id, " ", bundle));
    if (!create_status.ok()) co_return create_status;
    const std::string gate = absl::StrCat(bundle, "/start");
    if (::mkfifo(gate.c_str(), 0600) != 0) std::abort();
    // Open at both ends, so that nobody waits for the other.
    gates_[id].reset(::open(gate.c_str(), O_RDWR | O_CLOEXEC));
    co_return Shell(
        {"/bin/sh", "-c", "read go <\"$0\"; exec /bin/sh -c \"$1\"", gate, commands[id]}, stdio);
  }
  Co<absl::Status> Start(std::string id) override {
    calls.push_back(absl::StrCat("start ", id));
    if (!start_status.ok()) co_return start_status;
    if (::write(gates_[id].get(), "\n", 1) != 1) std::abort();
    co_return absl::OkStatus();
  }
  Co<absl::StatusOr<pid_t>> Exec(std::string id, std::string process_file,
                                 ProcessStdio stdio) override {
    calls.push_back(absl::StrCat("exec ", id));
    const absl::StatusOr<std::string> process = ReadFile(process_file);
    exec_process = process.ok() ? *process : process.status().ToString();
    if (!exec_status.ok()) co_return exec_status;
    co_return Shell({"/bin/sh", "-c", exec_command}, stdio);
  }
  Co<absl::Status> Delete(std::string id) override {
    calls.push_back(absl::StrCat("delete ", id));
    // Like the real one, it leaves no process.
    if (last_pid > 0) ::kill(last_pid, SIGKILL);
    co_return delete_status;
  }
  Co<absl::Status> Update(std::string id, std::string file) override {
    calls.push_back(absl::StrCat("update ", id));
    resources = ReadFile(file).value_or("");
    co_return absl::OkStatus();
  }

  std::string exec_command;
  pid_t last_pid = 0;

 private:
  absl::StatusOr<pid_t> Shell(std::vector<std::string> argv, const ProcessStdio& stdio) {
    SpawnRequest request;
    request.argv = std::move(argv);
    request.stdin_fd = stdio.stdin_fd;
    request.stdout_fd = stdio.stdout_fd;
    request.stderr_fd = stdio.stderr_fd;
    absl::StatusOr<pid_t> pid = Spawn(request);
    if (pid.ok()) last_pid = *pid;
    return pid;
  }

  std::map<std::string, UniqueFd> gates_;
};

class FakeHost : public HostLink {
 public:
  absl::Status prepare_status;
  agent::v1::PreparedContainer answer;
  // If there is one, a Prepare is answered once it is set.
  std::shared_ptr<Event> answering;
  std::vector<std::string> prepared, released;
  std::vector<agent::v1::GuestEvent> events;

  Co<absl::StatusOr<agent::v1::PreparedContainer>> Prepare(std::string container_id,
                                                           std::vector<std::string>) override {
    prepared.push_back(container_id);
    const std::shared_ptr<Event> held = answering;
    if (held != nullptr) co_await held->Wait();
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
  absl::Status mount_status, unmount_status;
  std::vector<std::string> mounted, unmounted, forgotten;
  absl::Status MountAll(const std::string& id, const agent::v1::PreparedContainer&) override {
    mounted.push_back(id);
    return mount_status;
  }
  absl::Status UnmountAll(const std::string& id) override {
    unmounted.push_back(id);
    return unmount_status;
  }
  void Forget(const std::string& id) override { forgotten.push_back(id); }
};

}  // namespace magnetar::guest::testing
