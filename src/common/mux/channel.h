#pragma once

#include <sys/types.h>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstddef>
#include <functional>

#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::mux {

// A descriptor that can be polled, socket or character device, with non-blocking
// reads and writes and waits for them. Reads and writes return what the system
// call does, with errno; a peer that is gone never raises SIGPIPE.
class Channel {
 public:
  using Waiter = std::function<void(const boost::system::error_code& error)>;

  Channel(const asio::any_io_executor& executor, UniqueFd fd);

  ssize_t Read(void* buffer, size_t size);
  ssize_t Write(const void* buffer, size_t size);
  // Read() of a socket, to which the peer may pass a descriptor: then `passed` is it, and the last
  // of the bytes is the one that it came with.
  ssize_t Receive(void* buffer, size_t size, UniqueFd& passed);

  // At most one of each kind pending. A closed channel calls with an error, later.
  void WaitReadable(Waiter waiter);
  void WaitWritable(Waiter waiter);
  Co<boost::system::error_code> Readable();

  // A virtio-serial port that the host has not opened yet reads as ended and polls as hung up
  // for ever. Completes when the host is there; at once for sockets.
  Co<boost::system::error_code> WaitForPeer();

  // Ends the write direction of a socket.
  void ShutdownWrite();
  // Whether the peer has closed both directions.
  bool PeerGone() const;
  void Close();
  bool open() const { return descriptor_.is_open(); }
  bool is_socket() const { return is_socket_; }

 private:
  asio::posix::stream_descriptor descriptor_;
  asio::posix::stream_descriptor changes_;
  bool is_socket_ = false;
};

}  // namespace magnetar::mux
