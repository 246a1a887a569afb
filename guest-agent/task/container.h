#pragma once

#include <sys/types.h>

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "guest-agent/init/reaper.h"
#include "guest-agent/task/process_io.h"
#include "guest-agent/util/notifier.h"

namespace magnetar::guest {

// One thing at a time, for coroutines of one thread.
class AsyncMutex {
 public:
  explicit AsyncMutex(const asio::any_io_executor& executor) : changed_(executor) {}

  class Lock {
   public:
    explicit Lock(AsyncMutex* mutex) : mutex_(mutex) {}
    Lock(Lock&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    ~Lock() {
      if (mutex_ == nullptr) return;
      mutex_->held_ = false;
      mutex_->changed_.Notify();
    }

   private:
    AsyncMutex* mutex_;
  };

  Co<Lock> Acquire() {
    while (held_) co_await changed_.Wait();
    held_ = true;
    co_return Lock(this);
  }

 private:
  bool held_ = false;
  Notifier changed_;
};

// The first process of a container, or one that was exec'ed into it.
struct Process {
  enum class State { kCreated, kRunning, kStopped };

  explicit Process(const asio::any_io_executor& executor)
      : mutex(executor), gone(executor), exited(executor) {}

  // Empty for the first process.
  std::string exec_id;
  // In the guest; 0 before there is one. It never leaves the guest.
  pid_t pid = 0;
  // Reaped, though what follows from its end may not have happened yet: the pid may be
  // another's by now.
  bool reaped = false;
  State state = State::kCreated;
  std::unique_ptr<ProcessIo> io;
  // An exec's OCI process as JSON.
  std::string spec;
  // The connection that asked for an exec.
  uint64_t connection = 0;
  bool caller_lost = false;
  Exit exit;
  std::chrono::steady_clock::time_point ended;
  // Start and Delete of one process exclude each other.
  AsyncMutex mutex;
  // Of a container's first process: set when nothing of the container runs any more.
  Event gone;
  // Set when the process's end may be told, or it could not be started, or was deleted.
  Event exited;
};

struct Container {
  explicit Container(const asio::any_io_executor& executor)
      : create_ended(executor),
        control(executor),
        init(std::make_shared<Process>(executor)),
        changed(executor) {}

  std::string id;
  // containerd's own bundle on the host, which State repeats.
  std::string host_bundle;
  // Ours: config.json, and the mount points of the root file system.
  std::string directory;
  // Directory of the cgroup.
  std::string cgroup;
  // False while Create is under way, and after a Create that failed and could not be undone.
  bool created = false;
  // The runtime is at work on its start.
  bool starting = false;
  // Deleted while Create was under way, which undoes it.
  bool doomed = false;
  // Create has succeeded, or failed and undone what it could.
  Event create_ended;
  bool paused = false;
  // Pause, Resume and Update of one container exclude each other.
  AsyncMutex control;
  // The host was asked to prepare it, so it must be told to release it.
  bool prepared = false;
  // Kills by the kernel that were told to the host, and the watch that tells them.
  uint64_t oom_kills = 0;
  int oom_watch = -1;
  std::shared_ptr<Process> init;
  std::map<std::string, std::shared_ptr<Process>> execs;
  // Execs between their Start and their end.
  int running_execs = 0;
  // Told when running_execs falls, or a start is over.
  Notifier changed;
};

}  // namespace magnetar::guest
