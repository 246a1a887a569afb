#include "guest-agent/pod/cpus.h"

#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "guest-agent/storage/disks.h"
#include "magnetar/files.h"

namespace magnetar::guest {
namespace {

using Clock = std::chrono::steady_clock;

// Starts what is there and does not run, as long as fewer than `count` do; how many run then.
absl::StatusOr<uint32_t> StartCpus(uint32_t count, const std::string& sys_cpu) {
  std::error_code error;
  uint32_t running = 0;
  std::vector<std::string> idle;
  for (const auto& entry : std::filesystem::directory_iterator(sys_cpu, error)) {
    const std::string name = entry.path().filename();
    uint32_t number = 0;
    if (!absl::StartsWith(name, "cpu") || !absl::SimpleAtoi(name.substr(3), &number)) continue;
    const std::string online = entry.path() / "online";
    const absl::StatusOr<std::string> state = ReadFile(online);
    if (state.ok() && absl::StartsWith(*state, "0")) {
      idle.push_back(online);
    } else {
      ++running;
    }
  }
  if (error) return absl::InternalError(absl::StrCat(sys_cpu, ": ", error.message()));
  for (const std::string& online : idle) {
    if (running >= count) break;
    const absl::Status started = WriteExisting(online, "1");
    if (!started.ok()) return started;
    ++running;
  }
  return running;
}

}  // namespace

absl::Status OnlineCpus(uint32_t count, std::chrono::nanoseconds timeout,
                        const std::string& sys_cpu) {
  absl::StatusOr<Uevents> uevents = Uevents::Open();
  if (!uevents.ok()) return uevents.status();
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout);
  while (true) {
    const absl::StatusOr<uint32_t> running = StartCpus(count, sys_cpu);
    if (!running.ok()) return running.status();
    if (*running >= count) return absl::OkStatus();
    if (!uevents->Wait(deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat(*running, " of ", count, " processors have appeared"));
    }
  }
}

}  // namespace magnetar::guest
