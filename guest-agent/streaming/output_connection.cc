#include "guest-agent/streaming/output_connection.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/descriptor_message.h"
#include "magnetar/mux.h"
#include "magnetar/output.h"
#include "magnetar/status.h"

namespace magnetar::guest {
namespace {

// What is being copied, of any stream: it holds nothing while a coroutine is suspended.
std::array<char, 64 << 10> chunk;

absl::Status Broken(const boost::system::error_code& error) {
  return absl::UnavailableError(absl::StrCat("the output's connection: ", error.message()));
}

// What a stream that has ended is read from: that way the multiplexer watches its user as any
// other's.
absl::StatusOr<UniqueFd> EndedSource() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) return ErrnoStatus(errno, "pipe");
  const UniqueFd write_end(fds[1]);
  return UniqueFd(fds[0]);
}

}  // namespace

OutputConnection::OutputConnection(const asio::any_io_executor& executor, UniqueFd socket)
    : socket_(executor, socket.release()), source_(executor) {
  socket_.non_blocking(true);
}

Co<absl::StatusOr<std::string>> OutputConnection::ReadId() {
  uint8_t size = 0;
  const auto size_buffer = asio::buffer(&size, 1);
  auto [size_error, size_read] =
      co_await asio::async_read(socket_, size_buffer, asio::as_tuple(asio::use_awaitable));
  if (size_error) co_return Broken(size_error);
  std::string id(size, '\0');
  const auto id_buffer = asio::buffer(id);
  auto [id_error, id_read] =
      co_await asio::async_read(socket_, id_buffer, asio::as_tuple(asio::use_awaitable));
  if (id_error) co_return Broken(id_error);
  co_return id;
}

Co<absl::Status> OutputConnection::Write(std::string_view data) {
  const auto buffer = asio::buffer(data.data(), data.size());
  auto [error, n] =
      co_await asio::async_write(socket_, buffer, asio::as_tuple(asio::use_awaitable));
  co_return error ? Broken(error) : absl::OkStatus();
}

Co<absl::Status> OutputConnection::SendClaimed() {
  const char claimed = kOutputClaimed;
  auto write = Write({&claimed, 1});
  co_return co_await std::move(write);
}

Co<absl::Status> OutputConnection::Send(streaming::OutputStream::Source source, bool may_pass) {
  if (!source.unsent.empty()) {
    auto write = Write(source.unsent);
    const absl::Status status = co_await std::move(write);
    if (!status.ok()) co_return status;
    source.unsent = std::string();
  }
  const bool multiplexed = CarriesDescriptors(socket_.native_handle());
  if (source.fd.ok() && !(multiplexed && may_pass)) {
    auto copy = Copy(std::exchange(source.fd, UniqueFd()));
    const absl::Status status = co_await std::move(copy);
    if (!status.ok()) co_return status;
  }
  if (!multiplexed) {
    ::shutdown(socket_.native_handle(), SHUT_WR);
    co_return absl::OkStatus();
  }
  if (!source.fd.ok()) {
    absl::StatusOr<UniqueFd> nothing = EndedSource();
    if (!nothing.ok()) co_return nothing.status();
    source.fd = *std::move(nothing);
  }
  auto pass = Pass(std::move(source.fd));
  co_return co_await std::move(pass);
}

Co<absl::Status> OutputConnection::Pass(UniqueFd source) {
  while (SendWithDescriptor(socket_.native_handle(), {&mux::kPassSource, 1}, source.get()) != 1) {
    if (errno != EAGAIN) co_return ErrnoStatus(errno, "pass an output to the multiplexer");
    auto [error] = co_await socket_.async_wait(asio::posix::descriptor_base::wait_write,
                                               asio::as_tuple(asio::use_awaitable));
    if (error) co_return Broken(error);
  }
  co_return absl::OkStatus();
}

Co<absl::Status> OutputConnection::Copy(UniqueFd source) {
  source_.assign(source.release());
  while (!gone_) {
    const ssize_t n = ::read(source_.native_handle(), chunk.data(), chunk.size());
    if (n > 0) {
      const auto size = static_cast<size_t>(n);
      const ssize_t sent = ::send(socket_.native_handle(), chunk.data(), size, MSG_NOSIGNAL);
      const size_t done = sent > 0 ? static_cast<size_t>(sent) : 0;
      if (done == size) {
        auto turn = asio::post(socket_.get_executor(), asio::use_awaitable);
        co_await std::move(turn);
        continue;
      }
      const std::string rest(chunk.data() + done, size - done);
      auto write = Write(rest);
      const absl::Status status = co_await std::move(write);
      if (!status.ok()) co_return status;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    // A terminal's master fails with EIO once its last user is gone; a pipe ends.
    if (n == 0 || errno != EAGAIN) co_return absl::OkStatus();
    auto [error] = co_await source_.async_wait(asio::posix::descriptor_base::wait_read,
                                               asio::as_tuple(asio::use_awaitable));
    if (error && !gone_) co_return Broken(error);
  }
  co_return absl::CancelledError("the output's connection is closed");
}

void OutputConnection::Watch(std::function<void()> gone) {
  // The host sends nothing after the id.
  socket_.async_wait(
      asio::posix::descriptor_base::wait_read,
      [self = shared_from_this(), gone = std::move(gone)](const boost::system::error_code&) {
        self->gone_ = true;
        self->Cut();
        gone();
      });
}

void OutputConnection::Cut() {
  ::shutdown(socket_.native_handle(), SHUT_RDWR);
  boost::system::error_code ignored;
  source_.cancel(ignored);
}

}  // namespace magnetar::guest
