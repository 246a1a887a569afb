#include "src/supervisor/control_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace magnetar::supervisor {

ControlServer::ControlServer(asio::any_io_executor executor, UniqueFd listener,
                             std::shared_ptr<const ttrpc::Services> services, IdleTrim& trim)
    : executor_(executor),
      listener_(executor, listener.release()),
      trim_(trim),
      services_(std::move(services)),
      closed_(executor) {}

Co<void> ControlServer::Serve(UniqueFd socket) {
  UniqueFd copy(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.ok()) co_return;
  open_.push_back(&copy);
  auto serve = ttrpc::ServeConnection(std::move(socket), services_);
  // How a peer left is nobody's concern.
  [[maybe_unused]] const absl::Status status = co_await std::move(serve);
  std::erase(open_, &copy);
  closed_.NotifyAll();
}

Co<void> ControlServer::Run() {
  while (true) {
    auto accept = Accept(listener_);
    absl::StatusOr<UniqueFd> socket = co_await std::move(accept);
    if (!socket.ok()) co_return;
    trim_.Activity();
    asio::co_spawn(executor_, Serve(*std::move(socket)), asio::detached);
  }
}

bool ControlServer::HasInput() {
  std::vector<pollfd> polled = {{.fd = listener_.native_handle(), .events = POLLIN, .revents = 0}};
  for (const UniqueFd* fd : open_)
    polled.push_back({.fd = fd->get(), .events = POLLIN, .revents = 0});
  ::poll(polled.data(), polled.size(), 0);
  for (const pollfd& p : polled) {
    // A peer that has closed needs no answer.
    if ((p.revents & POLLIN) != 0 && (p.revents & POLLHUP) == 0) return true;
  }
  return false;
}

Co<void> ControlServer::Drain(std::chrono::nanoseconds grace) {
  const auto deadline = Event::Clock::now() + grace;
  // Calls that were made before the end get their answer as well.
  while (HasInput() && Event::Clock::now() < deadline) {
    auto turn = asio::post(executor_, asio::use_awaitable);
    co_await std::move(turn);
  }
  listener_.close();
  // To the server this is the peer's orderly close: it answers what is pending, then ends.
  for (UniqueFd* fd : open_) ::shutdown(fd->get(), SHUT_RD);
  while (!open_.empty() && Event::Clock::now() < deadline) {
    auto wait = closed_.WaitUntil(deadline);
    co_await std::move(wait);
  }
}

}  // namespace magnetar::supervisor
