#include "src/daemon/cgroup/sandbox_cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "src/daemon/cgroup/cgroup_tree.h"
#include "src/daemon/cgroup/held_scopes.h"
#include "src/daemon/cgroup/kill.h"
#include "src/daemon/cgroup/layout.h"
#include "src/daemon/cgroup/limits.h"
#include "src/daemon/cgroup/metrics.h"
#include "src/daemon/cgroup/systemd_scopes.h"

namespace magnetar::daemon {
namespace {

// More than v1 shows for a cgroup without a limit.
constexpr uint64_t kNoLimit = uint64_t{1} << 62;

class HostCgroups final : public CgroupManager {
 public:
  HostCgroups(std::vector<Hierarchy> hierarchies, std::chrono::milliseconds kill_limit,
              std::shared_ptr<SystemdScopes> scopes)
      : hierarchies_(std::move(hierarchies)),
        kill_limit_(kill_limit),
        scopes_(scopes != nullptr ? std::make_unique<HeldScopes>(std::move(scopes)) : nullptr) {}

  absl::StatusOr<std::vector<UniqueFd>> Create(const std::string& cgroup_parent,
                                               const std::string& sandbox_id,
                                               const SandboxLimits& limits) override {
    auto place = Place(cgroup_parent, sandbox_id);
    if (!place.ok()) return place.status();
    auto procs = CreateEverywhere(*place, limits);
    if (!procs.ok()) {
      absl::Status undone = RemoveEverywhere(*place);
      if (!undone.ok()) {
        return Annotate(procs.status(),
                        absl::StrCat("(and undoing failed: ", undone.message(), ")"));
      }
    }
    return procs;
  }

  absl::Status Update(const std::string& cgroup_parent, const std::string& sandbox_id,
                      const SandboxLimits& limits) override {
    auto place = Place(cgroup_parent, sandbox_id);
    if (!place.ok()) return place.status();
    MAGNETAR_RETURN_IF_ERROR(CheckExists(place->path));
    for (const Hierarchy& hierarchy : hierarchies_) {
      MAGNETAR_RETURN_IF_ERROR(WriteLimits(hierarchy, place->path, limits, /*reset=*/true));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<io::containerd::cgroups::v2::Metrics> Metrics(
      const std::string& cgroup_parent, const std::string& sandbox_id) override {
    auto place = Place(cgroup_parent, sandbox_id);
    if (!place.ok()) return place.status();
    MAGNETAR_RETURN_IF_ERROR(CheckExists(place->path));
    io::containerd::cgroups::v2::Metrics metrics;
    for (const Hierarchy& hierarchy : hierarchies_) {
      const std::string directory = absl::StrCat(hierarchy.path, "/", place->path);
      if (hierarchy.v2) {
        ReadMetricsV2(hierarchy, directory, metrics);
      } else {
        ReadMetricsV1(hierarchy, directory, metrics);
      }
    }
    return metrics;
  }

  absl::StatusOr<uint64_t> MemoryLimitAbove(const std::string& cgroup_parent,
                                            const std::string& sandbox_id) override {
    auto place = Place(cgroup_parent, sandbox_id);
    if (!place.ok()) return place.status();
    uint64_t least = kNoLimit;
    for (const Hierarchy& hierarchy : hierarchies_) {
      if (!hierarchy.Has("memory")) continue;
      const char* file = hierarchy.v2 ? "memory.max" : "memory.limit_in_bytes";
      std::string path = place->top;
      while (path.find('/') != std::string::npos) {
        path.resize(path.rfind('/'));
        least = std::min(least,
                         ReadNumber(absl::StrCat(hierarchy.path, "/", path, "/", file), kNoLimit));
      }
    }
    return least < kNoLimit ? least : 0;
  }

  absl::Status Remove(const std::string& cgroup_parent, const std::string& sandbox_id) override {
    auto place = Place(cgroup_parent, sandbox_id);
    // Create refuses such a path, so nothing of ours can be there.
    if (!place.ok()) return absl::OkStatus();
    return RemoveEverywhere(*place);
  }

 private:
  absl::StatusOr<SandboxPlace> Place(const std::string& cgroup_parent,
                                     const std::string& sandbox_id) const {
    return PlaceSandbox(cgroup_parent, sandbox_id, scopes_ != nullptr);
  }

  absl::Status CheckExists(const std::string& path) const {
    const std::string directory = absl::StrCat(hierarchies_[0].path, "/", path);
    struct stat st;
    if (::stat(directory.c_str(), &st) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("cgroup ", directory));
  }

  absl::StatusOr<std::vector<UniqueFd>> CreateEverywhere(const SandboxPlace& place,
                                                         const SandboxLimits& limits) const {
    if (!place.scope.empty()) MAGNETAR_RETURN_IF_ERROR(StartScope(place));
    std::vector<UniqueFd> procs;
    for (const Hierarchy& hierarchy : hierarchies_) {
      MAGNETAR_RETURN_IF_ERROR(Make(hierarchy, place.path, limits));
      MAGNETAR_RETURN_IF_ERROR(WriteLimits(hierarchy, place.path, limits, /*reset=*/false));
      const std::string file = absl::StrCat(hierarchy.path, "/", place.path, "/cgroup.procs");
      UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CLOEXEC));
      if (!fd.ok()) return ErrnoStatus(errno, absl::StrCat("open ", file));
      procs.push_back(std::move(fd));
    }
    return procs;
  }

  absl::Status Make(const Hierarchy& hierarchy, const std::string& path,
                    const SandboxLimits& limits) const {
    std::vector<std::string> required;
    for (const LimitWrite& write : LimitWrites(hierarchy, limits, /*reset=*/false)) {
      required.push_back(write.controller);
    }
    std::lock_guard<std::mutex> lock(tree_mutex_);
    return MakePath(hierarchy, path, hierarchy.controllers, required);
  }

  // The scope's holder moves to where the VM will be: v2 enables controllers for the
  // children of a cgroup only while that has no process itself.
  absl::Status StartScope(const SandboxPlace& place) const {
    auto holder = scopes_->Start(place.scope, place.slice);
    if (!holder.ok()) return holder.status();
    for (const Hierarchy& hierarchy : hierarchies_) {
      {
        std::lock_guard<std::mutex> lock(tree_mutex_);
        MAGNETAR_RETURN_IF_ERROR(MakePath(hierarchy, place.path, {}, {}));
      }
      MAGNETAR_RETURN_IF_ERROR(WriteExisting(
          absl::StrCat(hierarchy.path, "/", place.path, "/cgroup.procs"), absl::StrCat(*holder)));
    }
    return absl::OkStatus();
  }

  absl::Status WriteLimits(const Hierarchy& hierarchy, const std::string& path,
                           const SandboxLimits& limits, bool reset) const {
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

  absl::Status RemoveEverywhere(const SandboxPlace& place) const {
    std::vector<std::string> directories;
    directories.reserve(hierarchies_.size());
    for (const Hierarchy& hierarchy : hierarchies_) {
      directories.push_back(absl::StrCat(hierarchy.path, "/", place.top));
    }
    MAGNETAR_RETURN_IF_ERROR(KillProcesses(directories, kill_limit_));
    absl::Status result;
    if (!place.scope.empty()) result = scopes_->Stop(place.scope);
    std::lock_guard<std::mutex> lock(tree_mutex_);
    for (const Hierarchy& hierarchy : hierarchies_) {
      result.Update(RemovePath(hierarchy, place.top));
    }
    return result;
  }

  const std::vector<Hierarchy> hierarchies_;
  const std::chrono::milliseconds kill_limit_;
  const std::unique_ptr<HeldScopes> scopes_;  // nullptr: no systemd
  // Sandboxes share parents: one must not be removed while a child of it is made.
  mutable std::mutex tree_mutex_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CgroupManager>> CreateCgroupManager(const CgroupOptions& options) {
  auto mountinfo = ReadFile(options.mountinfo, 16 << 20);
  if (!mountinfo.ok()) return mountinfo.status();
  auto hierarchies = ParseHierarchies(*mountinfo, options.mount_point);
  if (!hierarchies.ok()) return hierarchies.status();
  for (const Hierarchy& hierarchy : *hierarchies) {
    if (!hierarchy.v2) continue;
    auto controllers = ReadFile(absl::StrCat(hierarchy.path, "/cgroup.controllers"));
    if (!controllers.ok() && !absl::IsNotFound(controllers.status())) return controllers.status();
    AssignControllers(controllers.ok() ? *controllers : "", *hierarchies);
    break;
  }
  // As sd_booted(3) looks.
  const bool systemd = ::access(options.systemd_directory.c_str(), F_OK) == 0;
  std::shared_ptr<SystemdScopes> scopes;
  if (systemd) scopes = options.scopes != nullptr ? options.scopes : CreateSystemdScopes();
  return std::make_unique<HostCgroups>(*std::move(hierarchies), options.kill_limit,
                                       std::move(scopes));
}

}  // namespace magnetar::daemon
