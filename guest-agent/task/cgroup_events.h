#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"

namespace magnetar::guest {

// Changes of cgroup files (memory.events, cgroup.events), by inotify: the kernel
// raises IN_MODIFY when their contents change. One thread.
class CgroupEvents {
 public:
  explicit CgroupEvents(const asio::any_io_executor& executor) : inotify_(executor) {}
  CgroupEvents(const CgroupEvents&) = delete;
  CgroupEvents& operator=(const CgroupEvents&) = delete;

  absl::Status Start();
  void Stop();

  // Calls back on each change of `file` until Remove(), or the file's end. One watch per
  // file at a time: ALREADY_EXISTS.
  absl::StatusOr<int> Add(const std::string& file, std::function<void()> changed);
  void Remove(int watch);

 private:
  void Listen();
  void Read();

  asio::posix::stream_descriptor inotify_;
  std::map<int, std::shared_ptr<std::function<void()>>> watches_;
};

}  // namespace magnetar::guest
