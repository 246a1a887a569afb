#include "src/daemon/options.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "magnetar/status.h"

namespace magnetar::daemon {

namespace {

// What the command line gives is held to the same rules as what the file gives.
absl::Status Override(const char* option, const char* key, const std::string& value,
                      Config* config) {
  if (value.empty()) return absl::OkStatus();
  return Annotate(SetConfigText(config, key, value), option);
}

}  // namespace

absl::StatusOr<Config> ReadConfigFile(const std::string& file) {
  absl::StatusOr<Config> config = LoadConfig(file);
  if (absl::IsNotFound(config.status()) && file == kDefaultConfigFile) return Config();
  return config;
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  options.config_file = kDefaultConfigFile;
  bool check = false;
  std::string listen;
  std::string run_dir;
  CLI::App app("containerd sandboxer: every pod in a microVM", "vmm-sandboxer");
  app.set_version_flag("--version", MAGNETAR_VERSION);
  app.add_option("--config", options.config_file, "configuration file")->capture_default_str();
  app.add_flag("--check-config", check,
               "read the configuration, say what is wrong with it, and end");
  app.add_option("--listen", listen, "instead of the configuration's listen");
  app.add_option("--run-dir", run_dir, "instead of the configuration's run_dir");
  app.add_option("--log-level", options.log_level, "instead of the configuration's log_level");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    options.done = true;
    options.exit_code = app.exit(e);
    return options;
  }
  absl::StatusOr<Config> config = ReadConfigFile(options.config_file);
  absl::Status status = config.status();
  if (status.ok()) {
    status = Override("--listen", "listen", listen, &*config);
    status.Update(Override("--run-dir", "run_dir", run_dir, &*config));
    status.Update(Override("--log-level", "log_level", options.log_level, &*config));
  }
  if (!status.ok()) {
    std::cerr << "vmm-sandboxer: " << status.message() << "\n";
    options.done = true;
    options.exit_code = 1;
    return options;
  }
  options.config = *std::move(config);
  if (check) {
    std::cout << options.config_file << ": correct\n";
    options.done = true;
  }
  return options;
}

}  // namespace magnetar::daemon
