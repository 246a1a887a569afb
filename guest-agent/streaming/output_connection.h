#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/streaming/output_stream.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// The guest's end of a connection of magnetar/output.h. The source of a stream that comes by the
// multiplexer can be passed to that (magnetar/mux.h), any other one is copied here. One thread.
class OutputConnection : public streaming::OutputStream::Reader,
                         public std::enable_shared_from_this<OutputConnection> {
 public:
  OutputConnection(const asio::any_io_executor& executor, UniqueFd socket);

  // The stream's id.
  Co<absl::StatusOr<std::string>> ReadId();
  Co<absl::Status> SendClaimed();
  // Returns when all that `source` will give is in others' hands. `may_pass`: the multiplexer may
  // read it.
  Co<absl::Status> Send(streaming::OutputStream::Source source, bool may_pass);
  // Calls `gone` when the host has closed the connection, or Cut() has. Once.
  void Watch(std::function<void()> gone);
  bool gone() const { return gone_; }

  void Cut() override;

 private:
  Co<absl::Status> Write(std::string_view data);
  Co<absl::Status> Pass(UniqueFd source);
  Co<absl::Status> Copy(UniqueFd source);

  asio::posix::stream_descriptor socket_;
  asio::posix::stream_descriptor source_;
  bool gone_ = false;
};

}  // namespace magnetar::guest
