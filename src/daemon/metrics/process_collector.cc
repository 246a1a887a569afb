#include "src/daemon/metrics/process_collector.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "magnetar/directory.h"
#include "magnetar/files.h"
#include "src/daemon/metrics/families.h"

namespace magnetar::daemon {
namespace {

using prometheus::MetricType;

// Fields of /proc/<pid>/stat as proc(5) counts them, of which the third is the first here: what
// stands before it may hold anything.
enum Field {
  kUserTicks = 14,
  kSystemTicks = 15,
  kThreads = 20,
  kStartTicks = 22,
  kVirtual = 23,
  kResident = 24
};

class Stat {
 public:
  explicit Stat(absl::string_view text) {
    const size_t name_end = text.rfind(')');
    if (name_end == absl::string_view::npos) return;
    fields_ = absl::StrSplit(text.substr(name_end + 1), ' ', absl::SkipWhitespace());
  }
  bool ok() const { return fields_.size() > kResident - 3; }
  double Get(Field field) const {
    double value = 0;
    (void)absl::SimpleAtod(fields_.at(field - 3), &value);
    return value;
  }

 private:
  std::vector<std::string> fields_;
};

// Seconds since the epoch at which the machine was booted; 0 if that is not told.
double BootTime(const std::string& stat_file) {
  const absl::StatusOr<std::string> text = ReadFile(stat_file, 16 << 20);
  if (!text.ok()) return 0;
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    double seconds = 0;
    if (words.size() == 2 && words[0] == "btime" && absl::SimpleAtod(words[1], &seconds)) {
      return seconds;
    }
  }
  return 0;
}

int OpenDescriptors(const std::string& directory) {
  const std::unique_ptr<DIR, DirectoryCloser> dir(::opendir(directory.c_str()));
  if (dir == nullptr) return -1;
  int count = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] != '.') ++count;
  }
  return count - 1;  // the one that looks
}

}  // namespace

std::vector<prometheus::MetricFamily> ProcessCollector::Collect() const {
  std::vector<prometheus::MetricFamily> all;
  const auto add = [&all](const char* name, const char* help, MetricType type, double value) {
    all.push_back(FamilyBuilder(name, help, type).Add(value).Build());
  };
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat(proc_, "/self/stat"));
  const Stat stat(text.ok() ? absl::string_view(*text) : absl::string_view());
  if (stat.ok()) {
    const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
    const auto page = static_cast<double>(::sysconf(_SC_PAGESIZE));
    add("process_cpu_seconds_total", "CPU time of the daemon", MetricType::Counter,
        (stat.Get(kUserTicks) + stat.Get(kSystemTicks)) / ticks);
    add("process_virtual_memory_bytes", "Virtual memory of the daemon", MetricType::Gauge,
        stat.Get(kVirtual));
    add("process_resident_memory_bytes", "Resident memory of the daemon", MetricType::Gauge,
        stat.Get(kResident) * page);
    add("process_threads", "Threads of the daemon", MetricType::Gauge, stat.Get(kThreads));
    const double booted = BootTime(absl::StrCat(proc_, "/stat"));
    if (booted > 0) {
      add("process_start_time_seconds", "When the daemon was started, since the epoch",
          MetricType::Gauge, booted + stat.Get(kStartTicks) / ticks);
    }
  }
  const int open = OpenDescriptors(absl::StrCat(proc_, "/self/fd"));
  if (open >= 0) {
    add("process_open_fds", "Open descriptors of the daemon", MetricType::Gauge, open);
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    add("process_max_fds", "Most descriptors that the daemon may have open", MetricType::Gauge,
        static_cast<double>(limit.rlim_cur));
  }
  return all;
}

}  // namespace magnetar::daemon
