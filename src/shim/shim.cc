#include "src/shim/shim.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "magnetar/ids.h"
#include "src/shim/arguments.h"
#include "src/shim/delete_task.h"
#include "src/shim/find_sandbox.h"
#include "src/shim/runtime_info.h"

namespace magnetar::shim {
namespace {

// containerd kills a shim after five seconds.
constexpr std::chrono::milliseconds kGuestLimit(3500);

bool WriteAll(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno != EINTR) return false;
    if (n > 0) done += static_cast<size_t>(n);
  }
  return true;
}

void Complain(const std::string& text) {
  WriteAll(STDERR_FILENO, absl::StrCat("containerd-shim-magnetar-v1: ", text, "\n"));
}

int Answer(const std::string& bytes) { return WriteAll(STDOUT_FILENO, bytes) ? 0 : 1; }

int RunDelete(const Arguments& arguments, const std::string& default_run_dir) {
  if (absl::Status status = ValidateId(arguments.id, "-id"); !status.ok()) {
    Complain(std::string(status.message()));
    return 1;
  }
  const std::string bundle = arguments.bundle.empty() ? "." : arguments.bundle;
  std::string warning;
  // A bundle that tells nothing leaves the task's end as all there is to say.
  auto sandbox = FindSandbox(bundle, default_run_dir);
  const auto response =
      DeleteTask(sandbox.ok() ? *sandbox : "", arguments.id, kGuestLimit, warning);
  if (!warning.empty()) Complain(warning);
  return Answer(response.SerializeAsString());
}

}  // namespace

int Run(const std::vector<std::string>& words, const std::string& default_run_dir) {
  auto arguments = ParseArguments(words);
  if (!arguments.ok()) {
    Complain(std::string(arguments.status().message()));
    return 1;
  }
  if (arguments->version) {
    return Answer(
        absl::StrCat("containerd-shim-magnetar-v1:\n  Version:  ", MAGNETAR_VERSION, "\n"));
  }
  // RuntimeRequest on stdin names a runtime's options; none changes the answer.
  if (arguments->info) return Answer(BuildRuntimeInfo().SerializeAsString());
  if (arguments->action == "delete") return RunDelete(*arguments, default_run_dir);
  if (arguments->action == "start") {
    Complain(
        "a container of this runtime needs a pod sandbox made by vmm-sandboxer: set sandboxer = "
        "\"vmm\" "
        "for the runtime in containerd's CRI configuration");
    return 1;
  }
  Complain(absl::StrCat("\"", arguments->action, "\" is no action; known are start and delete"));
  return 1;
}

}  // namespace magnetar::shim
