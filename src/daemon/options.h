#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "src/daemon/config/config.h"

namespace magnetar::daemon {

inline constexpr char kDefaultConfigFile[] = "/etc/magnetar/vmm-sandboxer.toml";

struct Options {
  std::string config_file;
  Config config;
  std::string log_level;  // of the command line; empty: the configuration's
  // --check-config, --help, --version: what was asked for has been printed.
  bool done = false;
  int exit_code = 0;
};

// Reads the command line and the configuration. Without --config the default file
// may be absent. Prints errors and help.
Options ParseOptions(int argc, char** argv);

// What --config or its default gives; used again at SIGHUP.
absl::StatusOr<Config> ReadConfigFile(const std::string& file);

}  // namespace magnetar::daemon
