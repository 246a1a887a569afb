#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest-agent/streaming/input_stream.h"
#include "guest-agent/streaming/output_connection.h"
#include "magnetar/co.h"
#include "magnetar/streaming/output_stream.h"
#include "magnetar/ttrpc/ttrpc.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// The stdio streams by name. containerd opens a stream before the Task call that
// names it, and opens it again after a restart of its own, so the two sides
// meet here. One thread.
class StreamRegistry {
 public:
  // Streams opened by a peer and named by no task yet; more are refused.
  static constexpr size_t kMaxUnclaimed = 256;
  // Of the inputs that were sent whole before a task named them, the last few are kept.
  static constexpr size_t kMaxLeftBehind = 8;

  explicit StreamRegistry(const asio::any_io_executor& executor) : executor_(executor) {}
  StreamRegistry(const StreamRegistry&) = delete;
  StreamRegistry& operator=(const StreamRegistry&) = delete;

  // For Task.Create and Task.Exec. `id` is valid and of the kind. ALREADY_EXISTS: it belongs to
  // another process.
  absl::StatusOr<std::shared_ptr<streaming::OutputStream>> ClaimOutput(const std::string& id);
  absl::StatusOr<std::shared_ptr<InputStream>> ClaimInput(const std::string& id);
  // The process is forgotten: so is the stream. Empty and unknown ids are fine.
  void Forget(const std::string& id);

  // Handler of Streaming.Stream: the whole life of one attachment.
  Co<absl::Status> Serve(std::shared_ptr<ttrpc::Stream> peer);
  // The same for a connection of magnetar/output.h.
  Co<absl::Status> ServeOutput(UniqueFd connection);

  // From here on the multiplexer is handed no pipe of a process. Whoever reads a pipe waits for the
  // one that writes to it, which Linux lets wait for a file meanwhile (sendfile, a page of the data
  // that is not there yet): if that file comes through the multiplexer, both would wait for ever.
  void KeepSources() { may_pass_ = false; }

  size_t size() const { return streams_.size(); }

 private:
  struct Entry {
    std::shared_ptr<streaming::OutputStream> output;
    std::shared_ptr<InputStream> input;
    bool claimed = false;
  };

  // Once a process has the stream, gives its source to the connection. Returns early if that goes.
  static Co<absl::Status> HandOver(OutputConnection& connection, streaming::OutputStream& output,
                                   bool may_pass);
  absl::StatusOr<Entry> Attach(const std::string& id);
  absl::StatusOr<Entry*> Claim(const std::string& id, bool input);
  void EraseUnclaimed(const std::string& id);
  void Detached(const std::string& id, const Entry& served);

  asio::any_io_executor executor_;
  bool may_pass_ = true;
  std::map<std::string, Entry> streams_;
  size_t unclaimed_ = 0;
  // Unclaimed ones without a peer, oldest first.
  std::deque<std::string> left_behind_;
};

}  // namespace magnetar::guest
