#include "guest-agent/init/kernel_command_line.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace magnetar::guest {

BootOptions ParseKernelCommandLine(const std::string& line) {
  BootOptions options;
  for (const absl::string_view word :
       absl::StrSplit(line, absl::ByAnyChar(" \n\t"), absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(word, absl::MaxSplits('=', 1));
    if (pair.first == "magnetar.transport") {
      options.transport.kind =
          pair.second == "vsock" ? TransportOptions::Kind::kVsock : TransportOptions::Kind::kMux;
    } else if (pair.first == "magnetar.ready") {
      uint32_t port = 0;
      if (absl::SimpleAtoi(pair.second, &port)) options.transport.ready_port = port;
    } else if (pair.first == "magnetar.log") {
      options.log_level = std::string(pair.second);
    }
  }
  return options;
}

}  // namespace magnetar::guest
