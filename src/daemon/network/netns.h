#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/own_thread.h"
#include "magnetar/unique_fd.h"

// Network namespaces and the only way into one: a thread that dies afterwards, so
// that no thread of the daemon ever changes its namespace.
namespace magnetar::daemon {

// Opens a network namespace by path. NOT_FOUND if the path is absent or nothing is
// mounted on it any more; INVALID_ARGUMENT if it is something else, or the caller's own namespace.
absl::StatusOr<UniqueFd> OpenNetns(const std::string& path);

// setns(2) of the calling thread.
absl::Status EnterNetns(int netns_fd);

// Runs `f`, which returns a Status or a StatusOr, inside the namespace.
template <typename F>
std::invoke_result_t<F> RunInNetns(int netns_fd, F f) {
  return RunOnOwnThread([netns_fd] { return EnterNetns(netns_fd); }, std::move(f));
}

}  // namespace magnetar::daemon
