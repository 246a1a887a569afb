#include "src/ctl/sandboxes.h"

#include <dirent.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "magnetar/child_process.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "magnetar/status.h"

namespace magnetar::ctl {
namespace {

absl::StatusOr<std::vector<std::string>> Subdirectories(const std::string& path) {
  std::unique_ptr<DIR, DirectoryCloser> open(::opendir(path.c_str()));
  if (open == nullptr) return ErrnoStatus(errno, absl::StrCat("run directory ", path));
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(open.get())) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  return names;
}

ProcessView View(const daemon::RecordedProcess& process) {
  ProcessView view{.name = process.name,
                   .pid = process.identity.pid,
                   .vmm = process.vmm,
                   .alive = OpenProcess(process.identity).ok(),
                   .memory = {}};
  if (!view.alive) return view;
  if (auto memory = MemoryOf(view.pid); memory.ok()) view.memory = *memory;
  return view;
}

void ReadExit(SandboxView& view) {
  if (view.record.exited_at_ns != 0) {
    view.exited = true;
    view.exit_status = view.record.exit_status;
    view.exited_at_ns = view.record.exited_at_ns;
    view.exit_reason = view.record.exit_reason;
    return;
  }
  auto text = ReadFile(absl::StrCat(view.directory, "/exit.json"), 64 << 10);
  if (!text.ok()) return;
  const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return;
  view.exited = true;
  const auto number = [&json](const char* key) -> int64_t {
    const auto it = json.find(key);
    return it != json.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
  };
  view.exit_status = static_cast<uint32_t>(number("status"));
  view.exited_at_ns = number("exited_at_ns");
  const auto reason = json.find("reason");
  if (reason != json.end() && reason->is_string()) view.exit_reason = reason->get<std::string>();
}

absl::StatusOr<SandboxView> ReadSandbox(const std::string& directory) {
  auto record = daemon::ReadRecord(directory);
  if (!record.ok()) return record.status();
  SandboxView view;
  view.directory = directory;
  view.record = *std::move(record);
  if (!view.pod.ParseFromString(view.record.pod_config)) {
    return absl::DataLossError(absl::StrCat(directory, ": pod_config does not parse"));
  }
  bool vmm_alive = false;
  for (const daemon::RecordedProcess& process : view.record.processes) {
    view.processes.push_back(View(process));
    vmm_alive |= view.processes.back().vmm && view.processes.back().alive;
  }
  ReadExit(view);
  view.state = view.record.state;
  if (view.state == "ready" && (view.exited || !vmm_alive)) view.state = "notready";
  return view;
}

}  // namespace

uint64_t SandboxView::pss() const {
  uint64_t sum = 0;
  for (const ProcessView& process : processes) sum += process.memory.pss;
  return sum;
}

absl::StatusOr<SandboxList> ListSandboxes(const std::string& run_dir) {
  auto names = Subdirectories(run_dir);
  if (!names.ok()) return names.status();
  SandboxList list;
  for (const std::string& name : *names) {
    auto sandbox = ReadSandbox(absl::StrCat(run_dir, "/", name));
    if (sandbox.ok()) {
      list.sandboxes.push_back(*std::move(sandbox));
    } else if (!absl::IsNotFound(sandbox.status())) {
      // Without a record it is being made or removed right now.
      list.problems.push_back(std::string(sandbox.status().message()));
    }
  }
  std::sort(list.sandboxes.begin(), list.sandboxes.end(),
            [](const SandboxView& a, const SandboxView& b) {
              return std::pair(a.record.created_at_ns, a.record.id) <
                     std::pair(b.record.created_at_ns, b.record.id);
            });
  return list;
}

absl::StatusOr<SandboxView> FindSandbox(const std::string& run_dir, const std::string& prefix) {
  auto names = Subdirectories(run_dir);
  if (!names.ok()) return names.status();
  std::vector<std::string> matches;
  for (const std::string& name : *names) {
    if (name == prefix) return ReadSandbox(absl::StrCat(run_dir, "/", name));
    if (!prefix.empty() && absl::StartsWith(name, prefix)) matches.push_back(name);
  }
  if (matches.empty()) {
    return absl::NotFoundError(absl::StrCat("no sandbox \"", prefix, "\" in ", run_dir));
  }
  if (matches.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", prefix, "\" begins the ids of ", matches.size(), " sandboxes"));
  }
  return ReadSandbox(absl::StrCat(run_dir, "/", matches[0]));
}

}  // namespace magnetar::ctl
