#include "src/common/mux/channel.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <utility>

#include "magnetar/descriptor_message.h"

namespace magnetar::mux {

Channel::Channel(const asio::any_io_executor& executor, UniqueFd fd)
    : descriptor_(executor), changes_(executor) {
  struct stat st = {};
  is_socket_ = ::fstat(fd.get(), &st) == 0 && S_ISSOCK(st.st_mode);
  boost::system::error_code error;
  descriptor_.assign(fd.get(), error);
  if (error) return;
  (void)fd.release();
  descriptor_.non_blocking(true, error);
}

ssize_t Channel::Read(void* buffer, size_t size) {
  ssize_t n;
  do {
    n = ::read(descriptor_.native_handle(), buffer, size);
  } while (n < 0 && errno == EINTR);
  return n;
}

ssize_t Channel::Receive(void* buffer, size_t size, UniqueFd& passed) {
  return ReceiveWithDescriptor(descriptor_.native_handle(), buffer, size, passed);
}

ssize_t Channel::Write(const void* buffer, size_t size) {
  ssize_t n;
  do {
    n = is_socket_ ? ::send(descriptor_.native_handle(), buffer, size, MSG_NOSIGNAL)
                   : ::write(descriptor_.native_handle(), buffer, size);
  } while (n < 0 && errno == EINTR);
  return n;
}

void Channel::WaitReadable(Waiter waiter) {
  descriptor_.async_wait(asio::posix::descriptor_base::wait_read, std::move(waiter));
}

void Channel::WaitWritable(Waiter waiter) {
  descriptor_.async_wait(asio::posix::descriptor_base::wait_write, std::move(waiter));
}

Co<boost::system::error_code> Channel::Readable() {
  auto wait = descriptor_.async_wait(asio::posix::descriptor_base::wait_read,
                                     asio::as_tuple(asio::use_awaitable));
  const auto [error] = co_await std::move(wait);
  co_return error;
}

Co<boost::system::error_code> Channel::WaitForPeer() {
  boost::system::error_code error;
  if (is_socket_ || !PeerGone()) co_return error;
  // An epoll of its own, edge-triggered: only a change wakes it, not the state of being hung up.
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event interest = {};
  interest.events = EPOLLIN | EPOLLOUT | EPOLLET;
  if (!epoll.ok() ||
      ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, descriptor_.native_handle(), &interest) != 0) {
    co_return boost::system::error_code(errno, boost::system::system_category());
  }
  changes_.assign(epoll.get(), error);
  if (error) co_return error;
  const int fd = epoll.release();
  while (PeerGone()) {
    auto wait = changes_.async_wait(asio::posix::descriptor_base::wait_read,
                                    asio::as_tuple(asio::use_awaitable));
    const auto [wait_error] = co_await std::move(wait);
    if (wait_error) co_return wait_error;
    epoll_event taken;
    ::epoll_wait(fd, &taken, 1, 0);
  }
  changes_.close(error);
  co_return error;
}

void Channel::ShutdownWrite() { ::shutdown(descriptor_.native_handle(), SHUT_WR); }

bool Channel::PeerGone() const {
  pollfd entry = {const_cast<Channel*>(this)->descriptor_.native_handle(), 0, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & (POLLHUP | POLLERR)) != 0;
}

void Channel::Close() {
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  changes_.close(ignored);
}

}  // namespace magnetar::mux
