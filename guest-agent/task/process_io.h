#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/task/oci_runtime.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

namespace magnetar::guest {

// stdin, stdout and stderr of one process: its streams, and the pipes or the
// terminal that connect them to it. One thread.
class ProcessIo {
 public:
  struct Uris {
    std::string in, out, err;
    bool terminal = false;
  };

  // Claims the streams that the URIs name. INVALID_ARGUMENT for a URI that is no stream's,
  // ALREADY_EXISTS for a stream of another process.
  static absl::StatusOr<std::unique_ptr<ProcessIo>> Open(const asio::any_io_executor& executor,
                                                         StreamRegistry& registry, Uris uris);
  ~ProcessIo();
  ProcessIo(const ProcessIo&) = delete;
  ProcessIo& operator=(const ProcessIo&) = delete;

  const Uris& uris() const { return uris_; }

  // Makes the pipes, or the socket `console_path` at which the terminal's master
  // will arrive. What it returns is valid until Connect().
  absl::StatusOr<ProcessStdio> Prepare(const std::string& console_path);
  // The process exists: connects its ends to the streams.
  absl::Status Connect();

  // A size that comes before the terminal is there is set once it is. FAILED_PRECONDITION
  // without a terminal.
  absl::Status Resize(uint32_t columns, uint32_t rows);
  // The process has ended: its stdin is read by nobody.
  void Exited();
  // Whoever asked for the process is gone for good: end of input, or a hangup of
  // the terminal, and output into nothing.
  void LoseCaller();
  // The process has ended, at `ended`: waits until its outputs are delivered where someone reads
  // them, within what is left of the time for that.
  Co<void> WaitDelivered(std::chrono::steady_clock::time_point ended);
  // Lets go of the streams at once: whoever is attached gets the end.
  void Forget();

 private:
  ProcessIo(const asio::any_io_executor& executor, StreamRegistry& registry, Uris uris)
      : executor_(executor), registry_(registry), uris_(std::move(uris)) {}

  absl::Status Claim();
  absl::Status ConnectTerminal();

  asio::any_io_executor executor_;
  StreamRegistry& registry_;
  const Uris uris_;
  std::string in_id_, out_id_, err_id_;
  std::shared_ptr<InputStream> in_;
  std::shared_ptr<streaming::OutputStream> out_;
  std::shared_ptr<streaming::OutputStream> err_;
  // The process's ends, until Connect().
  UniqueFd child_in_, child_out_, child_err_;
  // Ours, until Connect().
  UniqueFd near_in_, near_out_, near_err_;
  UniqueFd console_listener_;
  std::string console_path_;
  UniqueFd master_;
  // Columns and rows that were last asked for.
  std::optional<std::pair<uint32_t, uint32_t>> size_;
};

}  // namespace magnetar::guest
