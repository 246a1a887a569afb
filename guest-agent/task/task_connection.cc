#include "guest-agent/task/task_connection.h"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <utility>

#include "guest-agent/task/task_service.h"
#include "guest-agent/util/log.h"
#include "guest-agent/util/notifier.h"

namespace magnetar::guest {
namespace {

// Frames that cross the end of a stream arrive within this.
constexpr auto kLinger = std::chrono::milliseconds(50);

// containerd has one connection for all of a container, on which a Wait of every exec is pending:
// however many there are, a State or a Kill must get through.
constexpr ttrpc::Limits kLimits = {.max_streams = 1 << 16};

}  // namespace

struct TaskConnections::Connection {
  Connection(const asio::any_io_executor& e, uint64_t i) : executor(e), id(i), ended(e) {}
  asio::any_io_executor executor;
  const uint64_t id;
  asio::cancellation_signal cancel;
  Event ended;
};

// The connection has carried a stdio stream, which is over.
Co<void> TaskConnections::CloseAfterStream(std::shared_ptr<Connection> connection) {
  const bool ended = co_await connection->ended.WaitFor(kLinger);
  if (!ended) connection->cancel.emit(asio::cancellation_type::terminal);
}

Co<void> TaskConnections::Run(TaskConnections* self, std::shared_ptr<Connection> connection,
                              UniqueFd socket) {
  const std::weak_ptr<Connection> weak = connection;
  auto stream_ended = [weak] {
    const auto alive = weak.lock();
    if (alive == nullptr) return;
    asio::co_spawn(alive->executor, CloseAfterStream(alive), asio::detached);
  };
  auto services =
      MakeTaskServices(self->tasks_, self->streams_, connection->id, std::move(stream_ended));
  auto serve = ttrpc::ServeConnection(std::move(socket), std::move(services), kLimits);
  auto slot = asio::bind_cancellation_slot(connection->cancel.slot(), asio::use_awaitable);
  auto served = asio::co_spawn(connection->executor, std::move(serve), std::move(slot));
  const absl::Status status = co_await std::move(served);
  connection->ended.Set();
  Log(LogLevel::kDebug, "task connection ended id=", connection->id, " ", status.ToString());
  self->tasks_.ConnectionLost(connection->id);
}

void TaskConnections::Serve(UniqueFd socket) {
  auto connection = std::make_shared<Connection>(executor_, next_id_++);
  asio::co_spawn(executor_, Run(this, connection, std::move(socket)), asio::detached);
}

}  // namespace magnetar::guest
