#include "src/daemon/options.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <utility>

namespace magnetar::daemon {

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
  std::string log_level;
  CLI::App app("containerd sandboxer: every pod in a microVM", "vmm-sandboxer");
  app.set_version_flag("--version", MAGNETAR_VERSION);
  app.add_option("--config", options.config_file, "configuration file")->capture_default_str();
  app.add_flag("--check-config", check,
               "read the configuration, say what is wrong with it, and end");
  app.add_option("--listen", listen, "instead of the configuration's listen");
  app.add_option("--run-dir", run_dir, "instead of the configuration's run_dir");
  app.add_option("--log-level", log_level, "instead of the configuration's log_level");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    options.done = true;
    options.exit_code = app.exit(e);
    return options;
  }
  absl::StatusOr<Config> config = ReadConfigFile(options.config_file);
  if (!config.ok()) {
    std::cerr << "vmm-sandboxer: " << config.status().message() << "\n";
    options.done = true;
    options.exit_code = 1;
    return options;
  }
  options.config = *std::move(config);
  if (!listen.empty()) options.config.listen = listen;
  if (!run_dir.empty()) options.config.run_dir = run_dir;
  if (!log_level.empty()) options.config.log_level = log_level;
  if (check) {
    std::cout << options.config_file << ": correct\n";
    options.done = true;
  }
  return options;
}

}  // namespace magnetar::daemon
