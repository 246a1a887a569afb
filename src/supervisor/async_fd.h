#pragma once

#include <boost/asio/posix/stream_descriptor.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

// Plain descriptors on Asio's reactor: try the system call first, wait on EAGAIN.
// All sockets and pipes here are non-blocking.
namespace magnetar::supervisor {

using AsyncFd = asio::posix::stream_descriptor;

Co<absl::Status> WaitReadable(AsyncFd& fd);
Co<absl::Status> WaitWritable(AsyncFd& fd);
// OK at EPOLLHUP or EPOLLERR: the peer is gone for both directions.
Co<absl::Status> WaitHangup(AsyncFd& fd);
// Whether it is; what completes a wait_error is also urgent data, which any peer can send.
bool HungUp(AsyncFd& fd);

// The next connection of a listening socket of any family, non-blocking. A
// connection that was given up before it was accepted is passed over. CANCELLED: the listener
// was closed; RESOURCE_EXHAUSTED: there are no descriptors or no memory now; FAILED_PRECONDITION:
// it will never accept again.
Co<absl::StatusOr<UniqueFd>> Accept(AsyncFd& listener);

// To a socket.
Co<absl::Status> WriteAll(AsyncFd& fd, std::string data);

absl::Status SetNonBlocking(int fd);

}  // namespace magnetar::supervisor
