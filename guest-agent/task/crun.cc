#include "guest-agent/task/crun.h"

#include <fcntl.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "guest-agent/util/spawn.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {
namespace {

// Of crun's words, what a caller gets to read.
constexpr size_t kMaxReasonBytes = 16 << 10;
constexpr size_t kMaxLogBytes = 1 << 20;

// Tells crun that its program is beyond a container's reach, which it is on a file system that
// cannot be written (crun asks for that too, src/libcrun/cloned_binary.c). Otherwise it makes a
// read-only mount of itself, and starts anew from that, each time it is called.
constexpr char kProtected[] = "_LIBCONTAINER_CLONED_BINARY=1";

absl::Status FailureStatus(const std::string& verb, const Exit& exit, const std::string& reason) {
  const std::string why =
      reason.empty() ? absl::StrCat("crun ended with status ", exit.status) : reason;
  return absl::UnknownError(absl::StrCat("crun ", verb, ": ", why));
}

class Crun : public OciRuntime {
 public:
  Crun(Reaper& reaper, CrunPaths paths) : reaper_(reaper), paths_(std::move(paths)) {}

  Co<absl::StatusOr<pid_t>> Create(std::string id, std::string bundle,
                                   ProcessStdio stdio) override {
    std::vector<std::string> arguments = {"create", "--bundle", bundle};
    auto run = RunWithPid("create", std::move(arguments), std::move(stdio), {id});
    co_return co_await std::move(run);
  }

  Co<absl::StatusOr<pid_t>> Exec(std::string id, std::string process_file,
                                 ProcessStdio stdio) override {
    std::vector<std::string> arguments = {"exec", "--detach", "--process", process_file};
    auto run = RunWithPid("exec", std::move(arguments), std::move(stdio), {id});
    co_return co_await std::move(run);
  }

  Co<absl::Status> Start(std::string id) override {
    // crun opens this fifo for writing, which waits for ever if the process that reads it, the
    // container's first one, has just died. With a reader here it never waits.
    const std::string fifo = absl::StrCat(paths_.root, "/", id, "/exec.fifo");
    const UniqueFd reader(::open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    std::vector<std::string> arguments = {"start", id};
    auto run = Run("start", std::move(arguments), ProcessStdio());
    co_return co_await std::move(run);
  }

  Co<absl::Status> Delete(std::string id) override {
    std::vector<std::string> arguments = {"delete", "--force", id};
    auto run = Run("delete", std::move(arguments), ProcessStdio());
    co_return co_await std::move(run);
  }

  Co<absl::Status> Update(std::string id, std::string resources_file) override {
    std::vector<std::string> arguments = {"update", "--resources", resources_file, id};
    auto run = Run("update", std::move(arguments), ProcessStdio());
    co_return co_await std::move(run);
  }

 private:
  Co<absl::Status> Run(std::string verb, std::vector<std::string> arguments, ProcessStdio stdio) {
    const std::string log_file = absl::StrCat(paths_.scratch, "/", ++serial_, ".log");
    SpawnRequest request;
    request.argv = {paths_.binary, absl::StrCat("--root=", paths_.root),
                    "--cgroup-manager=cgroupfs", "--log-format=json",
                    absl::StrCat("--log=", log_file)};
    for (std::string& argument : arguments) request.argv.push_back(std::move(argument));
    request.environment = {kProtected};
    request.stdin_fd = stdio.stdin_fd;
    request.stdout_fd = stdio.stdout_fd;
    request.stderr_fd = stdio.stderr_fd;
    const absl::StatusOr<pid_t> pid = Spawn(request);
    if (!pid.ok()) co_return pid.status();
    auto wait = reaper_.Wait(*pid);
    const Exit exit = co_await std::move(wait);
    absl::Status status;
    if (exit.status != 0) {
      const absl::StatusOr<std::string> log = ReadFile(log_file, kMaxLogBytes);
      status = FailureStatus(verb, exit, log.ok() ? CrunLogReason(*log) : std::string());
    }
    RemoveFile(log_file).IgnoreError();
    co_return status;
  }

  Co<absl::StatusOr<pid_t>> RunWithPid(std::string verb, std::vector<std::string> arguments,
                                       ProcessStdio stdio, std::vector<std::string> positional) {
    const std::string pid_file = absl::StrCat(paths_.scratch, "/", ++serial_, ".pid");
    arguments.push_back(absl::StrCat("--pid-file=", pid_file));
    if (!stdio.console_socket.empty()) {
      arguments.push_back(absl::StrCat("--console-socket=", stdio.console_socket));
    }
    for (std::string& argument : positional) arguments.push_back(std::move(argument));
    auto run = Run(verb, std::move(arguments), std::move(stdio));
    const absl::Status status = co_await std::move(run);
    absl::StatusOr<pid_t> pid = status.ok() ? ReadPid(pid_file) : absl::StatusOr<pid_t>(status);
    RemoveFile(pid_file).IgnoreError();
    co_return pid;
  }

  static absl::StatusOr<pid_t> ReadPid(const std::string& path) {
    const absl::StatusOr<std::string> text = ReadFile(path, 64);
    if (!text.ok()) return Annotate(text.status(), "crun left no pid");
    pid_t pid = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &pid) || pid <= 1) {
      return absl::InternalError(absl::StrCat("crun left a strange pid \"", *text, "\""));
    }
    return pid;
  }

  Reaper& reaper_;
  const CrunPaths paths_;
  uint64_t serial_ = 0;
};

}  // namespace

std::string CrunLogReason(const std::string& log) {
  std::string reason;
  for (const absl::string_view line : absl::StrSplit(log, '\n', absl::SkipWhitespace())) {
    const auto entry = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!entry.is_object()) continue;
    const auto level = entry.find("level");
    const auto message = entry.find("msg");
    if (message == entry.end() || !message->is_string()) continue;
    if (level != entry.end() && level->is_string() && *level != "error") continue;
    const std::string text = message->get<std::string>();
    if (reason.size() + text.size() > kMaxReasonBytes) break;
    absl::StrAppend(&reason, reason.empty() ? "" : ": ", text);
  }
  return reason;
}

std::unique_ptr<OciRuntime> MakeCrun(Reaper& reaper, CrunPaths paths) {
  return std::make_unique<Crun>(reaper, std::move(paths));
}

}  // namespace magnetar::guest
