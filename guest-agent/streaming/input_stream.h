#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "guest-agent/util/notifier.h"
#include "magnetar/co.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// stdin of a process: from whoever is attached to a pipe (or a terminal's
// master). The peer may send what it has been granted: kWindowBytes less what is
// not yet written. Its end of stream closes the pipe once everything before it
// is written; losing the peer does not, for it may come back.
//
// One thread; always owned by a shared_ptr.
class InputStream : public std::enable_shared_from_this<InputStream> {
 public:
  static constexpr size_t kWindowBytes = 64 << 10;

  explicit InputStream(const asio::any_io_executor& executor);

  // Begins to write. Once. A terminal stays open at the end of the stream.
  void SetSink(UniqueFd sink, bool terminal);
  // The process reads no more (it has ended, or never will): what comes is
  // taken and dropped, so that no peer is left waiting for a window.
  void CloseSink();
  // Closes the pipe as if the peer had ended the stream.
  void End();

  // The peer has ended the stream: what it sent is all there will be.
  bool ended() const { return ended_; }
  bool attached() const { return peer_ != nullptr; }

  // Serves one attachment until it is over. A new one takes over from the old.
  Co<absl::Status> Serve(std::shared_ptr<ttrpc::Stream> peer);

 private:
  struct Attachment;
  static Co<void> WriteSink(std::shared_ptr<InputStream> self);
  static Co<void> GrantWindow(std::shared_ptr<InputStream> self,
                              std::shared_ptr<Attachment> attachment);
  Co<absl::Status> ReceiveAll(std::shared_ptr<Attachment> attachment);

  asio::any_io_executor executor_;
  asio::posix::stream_descriptor sink_;
  Notifier changed_;
  std::string buffer_;
  bool terminal_ = false;
  bool ended_ = false;
  bool discard_ = false;
  std::shared_ptr<Attachment> peer_;
};

}  // namespace magnetar::guest
