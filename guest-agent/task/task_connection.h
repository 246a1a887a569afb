#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>

#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/task/task_manager.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// containerd's connections to the task port: one per container, and one per
// stdio stream, which containerd up to 2.2 never closes itself.
class TaskConnections {
 public:
  TaskConnections(const asio::any_io_executor& executor, TaskManager& tasks,
                  StreamRegistry& streams)
      : executor_(executor), tasks_(tasks), streams_(streams) {}
  TaskConnections(const TaskConnections&) = delete;
  TaskConnections& operator=(const TaskConnections&) = delete;

  // Serves it in the background until it ends.
  void Serve(UniqueFd connection);

 private:
  static Co<void> Run(TaskConnections* self, uint64_t id, UniqueFd socket);

  asio::any_io_executor executor_;
  TaskManager& tasks_;
  StreamRegistry& streams_;
  uint64_t next_id_ = 1;
};

}  // namespace magnetar::guest
