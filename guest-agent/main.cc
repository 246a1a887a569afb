#include "absl/strings/string_view.h"
#include "guest-agent/init/boot.h"
#include "guest-agent/init/kernel_command_line.h"
#include "guest-agent/init/modules.h"
#include "guest-agent/pod/pid_namespace.h"
#include "guest-agent/server.h"
#include "guest-agent/util/log.h"
#include "magnetar/files.h"

int main(int argc, char** argv) {
  using magnetar::guest::Log;
  using magnetar::guest::LogLevel;
  if (argc > 0 && magnetar::guest::IsModprobe(argv[0])) {
    return magnetar::guest::ModprobeMain({argv + 1, argv + argc});
  }
  if (argc > 1 && absl::string_view(argv[1]) == magnetar::guest::kPauseArgument) {
    magnetar::guest::PauseMain();
  }
  absl::Status status;
  if (magnetar::guest::InInitrd()) {
    status = magnetar::guest::SwitchToRootImage();
  } else {
    status = magnetar::guest::PrepareRoot();
    if (status.ok()) {
      const auto line = magnetar::ReadFile("/proc/cmdline");
      status =
          magnetar::guest::Serve(magnetar::guest::ParseKernelCommandLine(line.ok() ? *line : ""));
    }
  }
  Log(LogLevel::kError, "the agent cannot go on: ", status.ToString());
  magnetar::guest::EndMachine();
}
