#include "src/supervisor/control_server.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

namespace magnetar::supervisor {

ControlServer::ControlServer(asio::any_io_executor executor, UniqueFd listener,
                             std::shared_ptr<const ttrpc::Services> services)
    : executor_(executor),
      listener_(executor, listener.release()),
      services_(std::move(services)),
      closed_(executor) {}

Co<void> ControlServer::Serve(UniqueFd socket) {
  UniqueFd copy(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.ok()) co_return;
  open_.push_back(&copy);
  auto serve = ttrpc::ServeConnection(std::move(socket), services_);
  co_await std::move(serve);
  std::erase(open_, &copy);
  closed_.NotifyAll();
}

Co<void> ControlServer::Run() {
  while (true) {
    auto accept = Accept(listener_);
    absl::StatusOr<UniqueFd> socket = co_await std::move(accept);
    if (!socket.ok()) co_return;
    asio::co_spawn(executor_, Serve(*std::move(socket)), asio::detached);
  }
}

Co<void> ControlServer::Drain(std::chrono::nanoseconds grace) {
  const auto deadline = Event::Clock::now() + grace;
  listener_.close();
  // To the server this is the peer's orderly close: it answers what is pending, then ends.
  for (UniqueFd* fd : open_) ::shutdown(fd->get(), SHUT_RD);
  while (!open_.empty() && Event::Clock::now() < deadline) {
    auto wait = closed_.WaitUntil(deadline);
    co_await std::move(wait);
  }
}

}  // namespace magnetar::supervisor
