#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "src/supervisor/supervisor.h"

int main() {
  namespace supervisor = magnetar::supervisor;
  auto launch = supervisor::ReadLaunch(supervisor::kLaunchFd);
  absl::Status status = launch.status();
  if (launch.ok()) status = supervisor::RunSupervisor(*launch);
  if (status.ok()) return 0;
  const std::string line = absl::StrCat("vmm-supervisor: ", status.message(), "\n");
  [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
  return 1;
}
