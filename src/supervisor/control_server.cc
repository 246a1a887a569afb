#include "src/supervisor/control_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "src/supervisor/accept_loop.h"

namespace magnetar::supervisor {
namespace {

// A daemon has one or two; each magnetarctl one.
constexpr int kMaxControlConnections = 256;

}  // namespace

ControlServer::ControlServer(asio::any_io_executor executor, UniqueFd listener,
                             std::shared_ptr<const ttrpc::Services> services,
                             std::shared_ptr<Calls> calls, IdleTrim& trim)
    : executor_(executor),
      listener_(executor, listener.release()),
      trim_(trim),
      services_(std::move(services)),
      calls_(std::move(calls)),
      limit_(std::make_shared<ConnectionLimit>(executor, kMaxControlConnections)) {}

Co<void> ControlServer::Serve(UniqueFd socket) {
  UniqueFd copy(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));
  if (copy.ok()) {
    open_.push_back(&copy);
    auto serve = ttrpc::ServeConnection(std::move(socket), services_);
    // How a peer left is nobody's concern.
    [[maybe_unused]] const absl::Status status = co_await std::move(serve);
    std::erase(open_, &copy);
  }
  limit_->Release();
  calls_->changed().NotifyAll();
}

Co<absl::Status> ControlServer::Run() {
  auto serve = [this](UniqueFd socket) {
    trim_.Activity();
    asio::co_spawn(executor_, Serve(std::move(socket)), asio::detached);
    calls_->changed().NotifyAll();
  };
  auto loop = AcceptLoop(listener_, limit_, std::move(serve));
  co_return co_await std::move(loop);
}

// Calls that were made before the end and that nobody has read yet.
bool ControlServer::HasInput() {
  pollfd backlog{.fd = listener_.native_handle(), .events = POLLIN, .revents = 0};
  if (::poll(&backlog, 1, 0) == 1) return true;
  return std::any_of(open_.begin(), open_.end(), [](const UniqueFd* fd) {
    int unread = 0;
    return ::ioctl(fd->get(), FIONREAD, &unread) == 0 && unread > 0;
  });
}

Co<void> ControlServer::Drain(std::chrono::nanoseconds grace) {
  const auto deadline = Event::Clock::now() + grace;
  // Whatever is read becomes a call, and a call that ends wakes this.
  while ((calls_->running() > 0 || HasInput()) && Event::Clock::now() < deadline) {
    auto wait = calls_->changed().WaitUntil(deadline);
    co_await std::move(wait);
  }
  listener_.close();
  // To the server this is the peer's orderly close.
  for (UniqueFd* fd : open_) ::shutdown(fd->get(), SHUT_RD);
  while (!open_.empty() && Event::Clock::now() < deadline) {
    auto wait = calls_->changed().WaitUntil(deadline);
    co_await std::move(wait);
  }
}

}  // namespace magnetar::supervisor
