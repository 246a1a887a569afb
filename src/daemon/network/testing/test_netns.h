#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "magnetar/child_process.h"
#include "magnetar/unique_fd.h"
#include "src/daemon/network/netns.h"

// Network namespaces for tests.
namespace magnetar::daemon {

// Output of a shell command in the calling thread's namespace.
inline std::string Shell(const std::string& command) {
  FILE* pipe = ::popen(absl::StrCat("(", command, ") 2>&1").c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  std::string out;
  char buffer[4096];
  while (const size_t n = ::fread(buffer, 1, sizeof(buffer), pipe)) out.append(buffer, n);
  if (::pclose(pipe) != 0) ADD_FAILURE() << command << ": " << out;
  return out;
}

// A namespace that lives as long as its descriptor: it has no name and leaves nothing.
class Netns {
 public:
  Netns() {
    std::thread([this] {
      if (::unshare(CLONE_NEWNET) != 0) return;
      fd_.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    }).join();
  }
  bool ok() const { return fd_.ok(); }
  int fd() const { return fd_.get(); }
  std::string path() const { return absl::StrCat("/proc/", ::getpid(), "/fd/", fd_.get()); }
  std::string Run(const std::string& command) const {
    auto out = RunInNetns(fd_.get(),
                          [&command]() -> absl::StatusOr<std::string> { return Shell(command); });
    return out.ok() ? *out : std::string(out.status().message());
  }
  UniqueFd Socket(int family) const {
    auto fd = RunInNetns(fd_.get(), [family]() -> absl::StatusOr<int> {
      return ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    });
    return UniqueFd(fd.ok() ? *fd : -1);
  }

 private:
  UniqueFd fd_;
};

// A process in a namespace, for as long as it lives.
class ProcessIn {
 public:
  explicit ProcessIn(int netns) {
    auto pid = RunInNetns(netns, []() -> absl::StatusOr<pid_t> {
      const pid_t child = ::fork();
      if (child != 0) return child;
      while (true) ::pause();
    });
    if (pid.ok()) pid_ = *pid;
  }
  ~ProcessIn() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  ProcessIn(const ProcessIn&) = delete;
  ProcessIn& operator=(const ProcessIn&) = delete;
  ProcessIdentity Identity() const {
    auto identity = IdentifyProcess(pid_);
    EXPECT_TRUE(identity.ok()) << identity.status();
    return identity.ok() ? *identity : ProcessIdentity();
  }

 private:
  pid_t pid_ = -1;
};

}  // namespace magnetar::daemon
