#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

// Processes by pidfd: nothing here can hit a process that merely has the same
// number as one that has ended. A pid that is written down (state files) becomes an identity:
// pid, start time and boot id.
namespace magnetar {

// A process, for as long as machines run. Start time: field 22 of
// /proc/<pid>/stat (proc(5)), clock ticks since boot.
struct ProcessIdentity {
  pid_t pid = 0;
  uint64_t start_time_ticks = 0;
  std::string boot_id;

  bool operator==(const ProcessIdentity&) const = default;
};

// This boot's id, as /proc/sys/kernel/random/boot_id tells it.
absl::StatusOr<std::string> BootId();

// NOT_FOUND if there is no such process.
absl::StatusOr<ProcessIdentity> IdentifyProcess(pid_t pid);

// A pidfd of exactly this process. NOT_FOUND: it has ended (a zombie counts as
// ended), or was one of another boot.
absl::StatusOr<UniqueFd> OpenProcess(const ProcessIdentity& identity);

// Start time from the contents of a /proc/<pid>/stat; the command name in it may
// hold anything. INVALID_ARGUMENT if it is none.
absl::StatusOr<uint64_t> ParseStartTime(std::string_view stat, char* state = nullptr);

// Sends a signal; a process that has ended is fine.
absl::Status SignalProcess(int pidfd, int signal);

// Completes when the process has ended, child or not.
Co<absl::Status> WaitUntilEnded(int pidfd);

struct ExitStatus {
  // As a shell tells it: the status, or 128 + the signal.
  uint32_t status = 0;
  int signal = 0;

  // "exited with status 1", "killed by SIGKILL".
  std::string Describe() const;
};

// A child of this process. Destruction neither kills nor reaps it.
class ChildProcess {
 public:
  ChildProcess() = default;
  ChildProcess(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  ChildProcess(ChildProcess&&) = default;
  ChildProcess& operator=(ChildProcess&&) = default;

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }
  bool running() const { return pidfd_.ok(); }

  absl::Status Signal(int signal) const { return SignalProcess(pidfd_.get(), signal); }
  // Completes when it has ended, and reaps it. Once.
  Co<absl::StatusOr<ExitStatus>> Wait();
  // The same, blocking.
  absl::StatusOr<ExitStatus> WaitBlocking();

 private:
  absl::StatusOr<ExitStatus> Reap();

  pid_t pid_ = 0;
  UniqueFd pidfd_;
};

struct FdMapping {
  int source = -1;
  int target = -1;
};

struct SpawnOptions {
  std::vector<std::string> argv;  // argv[0] is the program's path
  std::vector<std::string> env;
  // What the child inherits; every other descriptor is closed. 0, 1 and 2 are
  // /dev/null unless mapped. Targets may collide with sources.
  std::vector<FdMapping> descriptors;
  // setsid(): signals of a terminal or service manager to the parent's group pass it by.
  bool new_session = false;
};

// Starts a program by posix_spawn, which is safe in a process with threads. The
// child has no blocked signals and default dispositions. Errors name the program.
absl::StatusOr<ChildProcess> Spawn(const SpawnOptions& options);

}  // namespace magnetar
