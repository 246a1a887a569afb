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

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/blocking.h"
#include "magnetar/failpoint.h"
#include "magnetar/files.h"
#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "src/daemon/config/log.h"
#include "src/daemon/sandbox/async.h"

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

absl::StatusOr<std::vector<std::string>> Subdirectories(const std::string& path) {
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return ErrnoStatus(errno, absl::StrCat("open ", path));
  const absl::Cleanup close = [dir] { ::closedir(dir); };
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(dir);
    if (entry == nullptr) break;
    if (entry->d_name[0] == '.') continue;
    struct stat st;
    if (::stat(absl::StrCat(path, "/", entry->d_name).c_str(), &st) == 0 && S_ISDIR(st.st_mode)) {
      names.emplace_back(entry->d_name);
    }
  }
  if (errno != 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
  return names;
}

// The record in a directory that is named after its sandbox. NOT_FOUND and DATA_LOSS: there is
// none that anybody could use.
absl::StatusOr<Record> ReadRecordOf(const std::string& name, const std::string& directory) {
  absl::StatusOr<Record> record = ReadRecord(directory);
  if (record.ok() && record->id != name) {
    return absl::DataLossError(absl::StrCat("the record is of sandbox ", record->id));
  }
  return record;
}

// Cut off before its first record or after its last: everything is named after the id, so it can
// be undone without knowing what was done. Its cgroup is found only in the default parent;
// another belongs to a pod, whose owner removes it.
Record UnknownRecord(const std::string& name) {
  Record unknown;
  unknown.id = name;
  unknown.state = "starting";
  unknown.steps = {Step::kDirectory, Step::kCgroup, Step::kShared, Step::kSupervisor};
  return unknown;
}

// Runs one operation of every sandbox, side by side, each on its own strand. Returns when all have
// ended, or after `limit`: whether all have.
Co<bool> ForAll(std::vector<std::shared_ptr<Sandbox>> sandboxes, Co<void> (Sandbox::*operation)(),
                std::chrono::nanoseconds limit) {
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
  auto wait = WaitFor(
      join->done, [join] { return join->left == 0; }, limit);
  const bool all = co_await std::move(wait);
  co_return all;
}

constexpr std::chrono::hours kNoLimit{24 * 365};

}  // namespace

Co<absl::Status> SandboxManager::Create(PodRequest pod, std::string containerd_namespace) {
  const std::string id = pod.id;
  if (ending_) co_return absl::UnavailableError("the daemon is ending");
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
  record.created_at_ns = env_->clock->RealtimeNs();
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

Co<absl::Status> SandboxManager::Recover() {
  const std::string run_dir = env_->config.run_dir;
  const absl::StatusOr<std::vector<std::string>> names = Subdirectories(run_dir);
  if (!names.ok()) co_return names.status();
  for (const std::string& name : *names) {
    const std::string directory = absl::StrCat(run_dir, "/", name);
    absl::StatusOr<Record> record = ReadRecordOf(name, directory);
    if (absl::IsNotFound(record.status()) || absl::IsDataLoss(record.status())) {
      if (!ValidateId(name, "sandbox_id").ok()) continue;  // not ours
      Log(LogLevel::kWarn, "cleaning up a directory without a record",
          {{"sandbox", name}, {"error", record.status().ToString()}});
      record = UnknownRecord(name);
    }
    if (!record.ok()) {
      // A newer daemon's, or one that cannot be read now: no reason to end somebody's pod. Its
      // VM's uid, which owns this directory, goes to nobody else.
      struct stat vmm {};
      if (::stat(absl::StrCat(directory, "/vmm").c_str(), &vmm) == 0 && vmm.st_uid != 0) {
        env_->uids->Reserve(vmm.st_uid);
      }
      Log(LogLevel::kError, "left alone",
          {{"sandbox", name}, {"error", record.status().ToString()}});
      continue;
    }
    if (record->uid != 0) env_->uids->Reserve(record->uid);
    Add(std::make_shared<RecordFile>(directory, *std::move(record)));
  }
  auto all = ForAll(All(), &Sandbox::Recover, kNoLimit);
  co_await std::move(all);
  co_return absl::OkStatus();
}

Co<void> SandboxManager::RecoverGuests() {
  auto all = ForAll(All(), &Sandbox::RecoverGuest, kNoLimit);
  co_await std::move(all);
}

Co<void> SandboxManager::DetachAll(std::chrono::nanoseconds limit) {
  ending_ = true;
  auto all = ForAll(All(), &Sandbox::Detach, limit);
  const bool done = co_await std::move(all);
  if (!done) Log(LogLevel::kWarn, "operations in flight are left to the next daemon");
}

Co<void> SandboxManager::ShutDownOrphan(std::shared_ptr<Sandbox> sandbox) {
  Log(LogLevel::kWarn, "containerd does not know this sandbox: shutting it down",
      {{"sandbox", sandbox->id()}});
  auto shutdown = asio::co_spawn(sandbox->strand(), sandbox->Shutdown(), asio::use_awaitable);
  const absl::Status status = co_await std::move(shutdown);
  if (!status.ok()) {
    Log(LogLevel::kError, "orphan not shut down",
        {{"sandbox", sandbox->id()}, {"error", status.ToString()}});
  }
}

Co<void> SandboxManager::SweepOrphans() {
  const std::chrono::nanoseconds age = env_->config.containerd.orphan_after;
  if (age.count() == 0) co_return;
  const int64_t born_before = env_->clock->RealtimeNs() - age.count();
  std::map<std::string, std::vector<std::shared_ptr<Sandbox>>> by_namespace;
  for (auto& sandbox : All()) {
    const auto now = sandbox->snapshot();
    // One that is being started has somebody who waits for it.
    if (now->state == SandboxState::kStarting) continue;
    if (now->created_at_ns < born_before)
      by_namespace[now->containerd_namespace].push_back(sandbox);
  }
  for (const auto& [ns, sandboxes] : by_namespace) {
    if (ns.empty()) {
      // Found without a record, and not yet cleaned up: containerd cannot be asked for it.
      for (const auto& sandbox : sandboxes) {
        auto shutdown = ShutDownOrphan(sandbox);
        co_await std::move(shutdown);
      }
      continue;
    }
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
      auto shutdown = ShutDownOrphan(sandbox);
      co_await std::move(shutdown);
    }
  }
}

}  // namespace magnetar::daemon
