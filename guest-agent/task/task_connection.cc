#include "guest-agent/task/task_connection.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <chrono>
#include <utility>

#include "guest-agent/task/task_service.h"
#include "guest-agent/util/log.h"
#include "magnetar/streaming/frames.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::guest {
namespace {

// containerd has one connection for all of a container, on which a Wait of every exec is pending:
// however many there are, a State or a Kill must get through.
constexpr ttrpc::Limits kLimits = {.max_streams = 1 << 16,
                                   .close_after_streams = streaming::kLinger};

}  // namespace

Co<void> TaskConnections::Run(TaskConnections* self, uint64_t id, UniqueFd socket) {
  auto services = MakeTaskServices(self->tasks_, self->streams_, id);
  auto serve = ttrpc::ServeConnection(std::move(socket), std::move(services), kLimits);
  const absl::Status status = co_await std::move(serve);
  Log(LogLevel::kDebug, "task connection ended id=", id, " ", status.ToString());
  self->tasks_.ConnectionLost(id);
}

void TaskConnections::Serve(UniqueFd socket) {
  asio::co_spawn(executor_, Run(this, next_id_++, std::move(socket)), asio::detached);
}

}  // namespace magnetar::guest
