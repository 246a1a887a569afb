#include "src/daemon/cgroup/sandbox_cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/cgroup/cgroup_tree.h"
#include "src/daemon/cgroup/kill.h"
#include "src/daemon/cgroup/layout.h"
#include "src/daemon/cgroup/limits.h"
#include "src/daemon/cgroup/metrics.h"

namespace magnetar::daemon {
namespace {

// What a sandbox's cgroup needs for limits and counters under v2.
const std::vector<std::string>& Controllers() {
  static const auto* const kControllers =
      new std::vector<std::string>{"cpu", "memory", "pids", "io"};
  return *kControllers;
}

class HostCgroups final : public CgroupManager {
 public:
  HostCgroups(std::vector<Hierarchy> hierarchies, std::chrono::milliseconds kill_limit)
      : hierarchies_(std::move(hierarchies)), kill_limit_(kill_limit) {}

  absl::StatusOr<std::vector<UniqueFd>> Create(const std::string& cgroup_parent,
                                               const std::string& sandbox_id,
                                               const SandboxLimits& limits) override {
    auto path = SandboxPath(cgroup_parent, sandbox_id);
    if (!path.ok()) return path.status();
    auto procs = CreateEverywhere(*path, limits);
    if (!procs.ok()) {
      absl::Status undone = RemoveEverywhere(*path);
      if (!undone.ok()) {
        return Annotate(procs.status(),
                        absl::StrCat("(and undoing failed: ", undone.message(), ")"));
      }
    }
    return procs;
  }

  absl::Status Update(const std::string& cgroup_parent, const std::string& sandbox_id,
                      const SandboxLimits& limits) override {
    auto path = SandboxPath(cgroup_parent, sandbox_id);
    if (!path.ok()) return path.status();
    MAGNETAR_RETURN_IF_ERROR(CheckExists(*path));
    for (const Hierarchy& hierarchy : hierarchies_) {
      MAGNETAR_RETURN_IF_ERROR(WriteLimits(hierarchy, *path, limits, /*reset=*/true));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<io::containerd::cgroups::v2::Metrics> Metrics(
      const std::string& cgroup_parent, const std::string& sandbox_id) override {
    auto path = SandboxPath(cgroup_parent, sandbox_id);
    if (!path.ok()) return path.status();
    MAGNETAR_RETURN_IF_ERROR(CheckExists(*path));
    const bool unified = IsUnified();
    io::containerd::cgroups::v2::Metrics metrics;
    for (const Hierarchy& hierarchy : hierarchies_) {
      const std::string directory = absl::StrCat(hierarchy.path, "/", *path);
      if (hierarchy.v2 && unified) ReadMetricsV2(directory, metrics);
      if (!hierarchy.v2) ReadMetricsV1(hierarchy, directory, metrics);
    }
    return metrics;
  }

  absl::Status Remove(const std::string& cgroup_parent, const std::string& sandbox_id) override {
    auto path = SandboxPath(cgroup_parent, sandbox_id);
    // Create refuses such a path, so nothing of ours can be there.
    if (!path.ok()) return absl::OkStatus();
    return RemoveEverywhere(*path);
  }

 private:
  // On a hybrid host v2's hierarchy is there for processes only.
  bool IsUnified() const { return hierarchies_.size() == 1 && hierarchies_[0].v2; }

  absl::Status CheckExists(const std::string& path) const {
    const std::string directory = absl::StrCat(hierarchies_[0].path, "/", path);
    struct stat st;
    if (::stat(directory.c_str(), &st) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("cgroup ", directory));
  }

  absl::StatusOr<std::vector<UniqueFd>> CreateEverywhere(const std::string& path,
                                                         const SandboxLimits& limits) const {
    std::vector<UniqueFd> procs;
    for (const Hierarchy& hierarchy : hierarchies_) {
      std::vector<std::string> required;
      if (IsUnified()) {
        for (const LimitWrite& write : LimitWrites(hierarchy, limits, /*reset=*/false)) {
          required.push_back(write.controller);
        }
      }
      static const std::vector<std::string> kNone;
      {
        std::lock_guard<std::mutex> lock(tree_mutex_);
        MAGNETAR_RETURN_IF_ERROR(
            MakePath(hierarchy, path, IsUnified() ? Controllers() : kNone, required));
      }
      MAGNETAR_RETURN_IF_ERROR(WriteLimits(hierarchy, path, limits, /*reset=*/false));
      const std::string file = absl::StrCat(hierarchy.path, "/", path, "/cgroup.procs");
      UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CLOEXEC));
      if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("open ", file));
      procs.push_back(std::move(fd));
    }
    return procs;
  }

  absl::Status WriteLimits(const Hierarchy& hierarchy, const std::string& path,
                           const SandboxLimits& limits, bool reset) const {
    if (hierarchy.v2 && !IsUnified()) return absl::OkStatus();
    for (const LimitWrite& write : LimitWrites(hierarchy, limits, reset)) {
      const std::string file = absl::StrCat(hierarchy.path, "/", path, "/", write.file);
      absl::Status status = WriteExisting(file, write.value);
      // A kernel without that controller, or without bandwidth control: lifting a limit
      // that cannot be set is no error.
      if (absl::IsNotFound(status) && (reset || !hierarchy.v2)) continue;
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status RemoveEverywhere(const std::string& path) const {
    std::vector<std::string> directories;
    for (const Hierarchy& hierarchy : hierarchies_) {
      directories.push_back(absl::StrCat(hierarchy.path, "/", path));
    }
    MAGNETAR_RETURN_IF_ERROR(KillProcesses(directories, kill_limit_));
    absl::Status result;
    std::lock_guard<std::mutex> lock(tree_mutex_);
    for (const Hierarchy& hierarchy : hierarchies_) result.Update(RemovePath(hierarchy, path));
    return result;
  }

  const std::vector<Hierarchy> hierarchies_;
  const std::chrono::milliseconds kill_limit_;
  // Sandboxes share parents: one must not be removed while a child of it is made.
  mutable std::mutex tree_mutex_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CgroupManager>> CreateCgroupManager(CgroupOptions options) {
  auto mountinfo = ReadFile(options.mountinfo, 16 << 20);
  if (!mountinfo.ok()) return mountinfo.status();
  auto hierarchies = ParseHierarchies(*mountinfo, options.mount_point);
  if (!hierarchies.ok()) return hierarchies.status();
  return std::make_unique<HostCgroups>(*std::move(hierarchies), options.kill_limit);
}

}  // namespace magnetar::daemon
