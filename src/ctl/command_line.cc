#include "src/ctl/command_line.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "src/ctl/console.h"
#include "src/ctl/logs.h"
#include "src/ctl/render.h"
#include "src/ctl/sandboxes.h"

namespace magnetar::ctl {
namespace {

struct Options {
  std::string run_dir = "/run/vmm-sandboxer";
  bool json = false;
  std::string id;
  std::string log_file;
};

absl::Status List(const Options& options, std::ostream& out, std::ostream& err) {
  auto list = ListSandboxes(options.run_dir);
  if (!list.ok()) return list.status();
  out << (options.json ? Dump(ListJson(list->sandboxes)) : ListText(list->sandboxes));
  for (const std::string& problem : list->problems)
    err << "magnetarctl: " << PrintableLine(problem) << "\n";
  return list->problems.empty() ? absl::OkStatus()
                                : absl::DataLossError("some sandboxes cannot be shown");
}

absl::Status Inspect(const Options& options, std::ostream& out) {
  auto sandbox = FindSandbox(options.run_dir, options.id);
  if (!sandbox.ok()) return sandbox.status();
  out << (options.json ? Dump(InspectJson(*sandbox)) : InspectText(*sandbox));
  return absl::OkStatus();
}

absl::Status Console(const Options& options, std::ostream& out) {
  auto sandbox = FindSandbox(options.run_dir, options.id);
  if (!sandbox.ok()) return sandbox.status();
  auto console = ReadConsole(sandbox->directory);
  if (!console.ok()) return console.status();
  if (options.json) {
    out << Dump({{"id", sandbox->record.id}, {"console", *console}});
  } else {
    out << Printable(*console);
  }
  return absl::OkStatus();
}

absl::Status Logs(const Options& options, std::ostream& out) {
  // Logs outlive their sandbox: an id that is gone is taken as it is.
  std::string id = options.id;
  if (auto sandbox = FindSandbox(options.run_dir, id); sandbox.ok()) id = sandbox->record.id;
  nlohmann::json lines = nlohmann::json::array();
  const LogSink sink = [&options, &out, &lines](const LogLine& line) {
    if (options.json) {
      lines.push_back(LogJson(line));
    } else {
      out << LogText(line);
    }
  };
  absl::Status status =
      options.log_file.empty() ? ReadJournal(id, sink) : ReadLogFile(options.log_file, id, sink);
  if (options.json && status.ok()) out << Dump(lines);
  return status;
}

}  // namespace

int Run(int argc, const char* const* argv, std::ostream& out, std::ostream& err) {
  Options options;
  CLI::App app(
      "Shows the sandboxes of vmm-sandboxer. It reads their run directory and needs no daemon.",
      "magnetarctl");
  app.set_version_flag("--version", "magnetarctl " MAGNETAR_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--run-dir", options.run_dir, "the daemon's run_dir")->capture_default_str();
  app.add_flag("--json", options.json, "print JSON");

  CLI::App* list = app.add_subcommand("list", "all sandboxes: pod, VMM, state, pids, memory (PSS)");
  list->alias("ls");
  CLI::App* inspect = app.add_subcommand("inspect", "all that is known of one sandbox");
  CLI::App* console =
      app.add_subcommand("console", "the last of a guest's console and of its VMM's messages");
  CLI::App* logs = app.add_subcommand("logs", "the daemon's log lines about one sandbox");
  for (CLI::App* command : {inspect, console, logs}) {
    command->add_option("sandbox", options.id, "id of the sandbox, or its beginning")->required();
  }
  logs->add_option("--log-file", options.log_file, "the daemon's log, if it is not in the journal");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, out, err);
  }
  absl::Status status;
  if (list->parsed()) status = List(options, out, err);
  if (inspect->parsed()) status = Inspect(options, out);
  if (console->parsed()) status = Console(options, out);
  if (logs->parsed()) status = Logs(options, out);
  if (status.ok()) return 0;
  err << "magnetarctl: " << PrintableLine(status.message()) << "\n";
  return 1;
}

}  // namespace magnetar::ctl
