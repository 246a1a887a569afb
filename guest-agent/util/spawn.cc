#include "guest-agent/util/spawn.h"

#include <fcntl.h>
#include <spawn.h>
#include <unistd.h>

#include <csignal>

#include "absl/strings/str_cat.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

constexpr char kPath[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

// A descriptor >= 3, so that the dup2s below do not overwrite each other's source
// and always clear close-on-exec.
absl::StatusOr<UniqueFd> Source(int fd, int flags) {
  const int copy =
      fd >= 0 ? ::fcntl(fd, F_DUPFD_CLOEXEC, 3) : ::open("/dev/null", flags | O_CLOEXEC);
  if (copy < 0) return ErrnoStatus(errno, "prepare a child's descriptor");
  UniqueFd owned(copy);
  if (copy >= 3) return owned;
  const int high = ::fcntl(copy, F_DUPFD_CLOEXEC, 3);
  if (high < 0) return ErrnoStatus(errno, "prepare a child's descriptor");
  return UniqueFd(high);
}

class FileActions {
 public:
  FileActions() { ::posix_spawn_file_actions_init(&actions_); }
  ~FileActions() { ::posix_spawn_file_actions_destroy(&actions_); }
  FileActions(const FileActions&) = delete;
  FileActions& operator=(const FileActions&) = delete;
  posix_spawn_file_actions_t* get() { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

class Attributes {
 public:
  Attributes() { ::posix_spawnattr_init(&attributes_); }
  ~Attributes() { ::posix_spawnattr_destroy(&attributes_); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
  posix_spawnattr_t* get() { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

}  // namespace

absl::StatusOr<pid_t> Spawn(const SpawnRequest& request) {
  if (request.argv.empty()) return absl::InvalidArgumentError("spawn: no command");
  const int wanted[3] = {request.stdin_fd, request.stdout_fd, request.stderr_fd};
  UniqueFd sources[3];
  FileActions actions;
  for (int i = 0; i < 3; ++i) {
    auto source = Source(wanted[i], i == 0 ? O_RDONLY : O_WRONLY);
    if (!source.ok()) return source.status();
    sources[i] = *std::move(source);
    const int error = ::posix_spawn_file_actions_adddup2(actions.get(), sources[i].get(), i);
    if (error != 0) return ErrnoStatus(error, "prepare a child's descriptors");
  }
  Attributes attributes;
  sigset_t all;
  sigset_t none;
  ::sigfillset(&all);
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigdefault(attributes.get(), &all);
  ::posix_spawnattr_setsigmask(attributes.get(), &none);
  ::posix_spawnattr_setflags(attributes.get(),
                             POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  std::vector<char*> argv;
  argv.reserve(request.argv.size() + 1);
  for (const std::string& argument : request.argv) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  std::vector<char*> environment = {const_cast<char*>(kPath)};
  for (const std::string& variable : request.environment) {
    environment.push_back(const_cast<char*>(variable.c_str()));
  }
  environment.push_back(nullptr);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, argv[0], actions.get(), attributes.get(), argv.data(),
                                  environment.data());
  if (error != 0) return ErrnoStatus(error, absl::StrCat("start ", request.argv[0]));
  return pid;
}

}  // namespace magnetar::guest
