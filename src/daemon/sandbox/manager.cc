#include "src/daemon/sandbox/manager.h"

#include <dirent.h>
#include <sys/stat.h>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"

namespace magnetar::daemon {
namespace {

absl::Status MakeSandboxDirectory(const std::string& directory, const Record& record) {
  // 0711: the VMM's uid must reach its own directory below.
  if (::mkdir(directory.c_str(), 0711) != 0) {
    return ErrnoStatus(errno, absl::StrCat("mkdir ", directory));
  }
  absl::Status status;
  if (::chmod(directory.c_str(), 0711) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("chmod ", directory));
  }
  if (status.ok()) status = Failpoint("create.directory");
  if (status.ok()) status = WriteRecord(directory, record);
  if (status.ok()) status = Failpoint("create.record");
  if (!status.ok()) {
    const absl::Status removed = RemoveTree(directory);
    if (!removed.ok()) {
      Log(LogLevel::kError, "cleanup failed",
          {{"sandbox", record.id}, {"error", removed.ToString()}});
    }
  }
  return status;
}

std::vector<std::string> Subdirectories(const std::string& path) {
  std::vector<std::string> names;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return names;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    struct stat st;
    if (::stat(absl::StrCat(path, "/", entry->d_name).c_str(), &st) == 0 && S_ISDIR(st.st_mode)) {
      names.emplace_back(entry->d_name);
    }
  }
  ::closedir(dir);
  return names;
}

// Runs one operation of every sandbox, side by side, each on its own strand.
Co<void> ForAll(std::vector<std::shared_ptr<Sandbox>> sandboxes, Co<void> (Sandbox::*operation)()) {
  struct Join {
    explicit Join(const asio::any_io_executor& executor) : done(executor) {}
    Event done;
    size_t left = 0;
  };
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  auto join = std::make_shared<Join>(executor);
  join->left = sandboxes.size();
  for (const auto& sandbox : sandboxes) {
    asio::co_spawn(sandbox->strand(), ((*sandbox).*operation)(),
                   asio::bind_executor(executor, [join, sandbox](const std::exception_ptr&) {
                     --join->left;
                     join->done.NotifyAll();
                   }));
  }
  while (join->left > 0) {
    auto wait = join->done.Wait();
    co_await std::move(wait);
  }
}

}  // namespace

Co<absl::Status> SandboxManager::Create(PodRequest pod, std::string containerd_namespace) {
  const std::string id = pod.id;
  {
    const std::lock_guard lock(mutex_);
    if (!sandboxes_.emplace(id, nullptr).second) {
      co_return absl::AlreadyExistsError(absl::StrCat("sandbox ", id, " already exists"));
    }
  }
  const std::string directory = absl::StrCat(env_->config.run_dir, "/", id);
  Record record;
  record.id = id;
  record.containerd_namespace = std::move(containerd_namespace);
  record.pod_config = pod.config.SerializeAsString();
  record.netns_path = pod.netns_path;
  record.runtime_handler = pod.runtime_handler;
  record.cgroup_parent = pod.config.linux().cgroup_parent();
  record.created_at_ns = RealtimeNs();
  auto blocking = RunBlocking(*env_->blocking, [directory, record] {
    absl::Status status;
    if (!record.netns_path.empty()) status = CheckNetns(record.netns_path);
    if (status.ok()) status = MakeSandboxDirectory(directory, record);
    return status;
  });
  const absl::Status status = co_await std::move(blocking);
  if (!status.ok()) {
    const std::lock_guard lock(mutex_);
    sandboxes_.erase(id);
    co_return status;
  }
  Add(std::make_shared<RecordFile>(directory, std::move(record)));
  Log(LogLevel::kInfo, "created",
      {{"sandbox", id},
       {"pod",
        absl::StrCat(pod.config.metadata().namespace_(), "/", pod.config.metadata().name())}});
  co_return absl::OkStatus();
}

std::shared_ptr<Sandbox> SandboxManager::Add(std::shared_ptr<RecordFile> record) {
  auto sandbox = std::make_shared<Sandbox>(env_, std::move(record));
  sandbox->OnForgotten([this, id = sandbox->id()] {
    const std::lock_guard lock(mutex_);
    sandboxes_.erase(id);
  });
  const std::lock_guard lock(mutex_);
  sandboxes_[sandbox->id()] = sandbox;
  return sandbox;
}

absl::StatusOr<std::shared_ptr<Sandbox>> SandboxManager::Find(const std::string& id) const {
  MAGNETAR_RETURN_IF_ERROR(ValidateId(id, "sandbox_id"));
  const std::lock_guard lock(mutex_);
  const auto it = sandboxes_.find(id);
  if (it == sandboxes_.end() || it->second == nullptr) {
    return absl::NotFoundError(absl::StrCat("sandbox ", id, " does not exist"));
  }
  return it->second;
}

std::vector<std::shared_ptr<Sandbox>> SandboxManager::All() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Sandbox>> all;
  for (const auto& [id, sandbox] : sandboxes_) {
    if (sandbox != nullptr) all.push_back(sandbox);
  }
  return all;
}

Co<void> SandboxManager::Recover() {
  const std::string run_dir = env_->config.run_dir;
  for (const std::string& name : Subdirectories(run_dir)) {
    const std::string directory = absl::StrCat(run_dir, "/", name);
    absl::StatusOr<Record> record = ReadRecord(directory);
    if (absl::IsUnimplemented(record.status())) {
      Log(LogLevel::kError, "left alone",
          {{"sandbox", name}, {"error", record.status().ToString()}});
      continue;
    }
    if (record.ok() && record->id != name) {
      record = absl::DataLossError(absl::StrCat("the record is of sandbox ", record->id));
    }
    if (!record.ok()) {
      if (!ValidateId(name, "sandbox_id").ok()) continue;  // not ours
      // Cut off before its first record or after its last: everything is named after
      // the id, so all of it can be undone without knowing what was done.
      Log(LogLevel::kWarn, "cleaning up a directory without a record",
          {{"sandbox", name}, {"error", record.status().ToString()}});
      Record unknown;
      unknown.id = name;
      unknown.state = "starting";
      unknown.steps = {Step::kDirectory, Step::kShared, Step::kSupervisor};
      record = std::move(unknown);
    }
    if (record->uid != 0) env_->uids->Reserve(record->uid);
    Add(std::make_shared<RecordFile>(directory, *std::move(record)));
  }
  auto all = ForAll(All(), &Sandbox::Recover);
  co_await std::move(all);
}

Co<void> SandboxManager::RecoverGuests() {
  auto all = ForAll(All(), &Sandbox::RecoverGuest);
  co_await std::move(all);
}

Co<void> SandboxManager::DetachAll() {
  auto all = ForAll(All(), &Sandbox::Detach);
  co_await std::move(all);
}

Co<void> SandboxManager::SweepOrphans() {
  const std::chrono::nanoseconds age = env_->config.containerd.orphan_after;
  if (age.count() == 0) co_return;
  const int64_t born_before = RealtimeNs() - age.count();
  std::map<std::string, std::vector<std::shared_ptr<Sandbox>>> by_namespace;
  for (auto& sandbox : All()) {
    const auto now = sandbox->snapshot();
    // One that is being started has somebody who waits for it.
    if (now->state == SandboxState::kStarting) continue;
    if (now->created_at_ns < born_before)
      by_namespace[now->containerd_namespace].push_back(sandbox);
  }
  for (const auto& [ns, sandboxes] : by_namespace) {
    auto list = env_->containerd->ListSandboxes(ns);
    absl::StatusOr<std::vector<std::string>> known = co_await std::move(list);
    if (!known.ok()) {
      // Away, or not in its senses: no reason to end anybody's pod.
      Log(LogLevel::kDebug, "no orphans sought", {{"error", known.status().ToString()}});
      continue;
    }
    const std::set<std::string> ids(known->begin(), known->end());
    for (const auto& sandbox : sandboxes) {
      if (ids.count(sandbox->id()) != 0) continue;
      Log(LogLevel::kWarn, "containerd does not know this sandbox: shutting it down",
          {{"sandbox", sandbox->id()}});
      auto shutdown = asio::co_spawn(sandbox->strand(), sandbox->Shutdown(), asio::use_awaitable);
      const absl::Status status = co_await std::move(shutdown);
      if (!status.ok()) {
        Log(LogLevel::kError, "orphan not shut down",
            {{"sandbox", sandbox->id()}, {"error", status.ToString()}});
      }
    }
  }
}

}  // namespace magnetar::daemon
