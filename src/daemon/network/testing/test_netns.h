#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
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

}  // namespace magnetar::daemon
