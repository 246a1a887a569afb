#include "guest-agent/task/process_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "guest-agent/task/console.h"
#include "magnetar/files.h"
#include "magnetar/status.h"
#include "magnetar/streaming/stream_id.h"

namespace magnetar::guest {
namespace {

// What containerd's own shim allows for output that is still on its way at
// Delete (cmd/containerd-shim-runc-v2/process/exec.go of 2.1.9); here from the process's end.
constexpr auto kDeliveryTime = std::chrono::seconds(10);
// Within which whoever opens a stream has got here, though his call was answered before.
constexpr auto kOpeningTime = std::chrono::seconds(1);
// What a process may write ahead of the agent, whose memory it is not: the process's cgroup is
// charged for it.
constexpr int kOutputPipeBytes = 256 << 10;

// A pipe whose `near_end` does not block.
absl::Status MakePipe(UniqueFd* read_end, UniqueFd* write_end, UniqueFd* near_end) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  read_end->reset(fds[0]);
  write_end->reset(fds[1]);
  const int near = near_end->get();
  if (::fcntl(near, F_SETFL, ::fcntl(near, F_GETFL) | O_NONBLOCK) != 0) {
    return ErrnoStatus(errno, "pipe");
  }
  return absl::OkStatus();
}

absl::Status MakeOutputPipe(UniqueFd* read_end, UniqueFd* write_end) {
  MAGNETAR_RETURN_IF_ERROR(MakePipe(read_end, write_end, read_end));
  // A smaller one is slower, and nothing else.
  ::fcntl(read_end->get(), F_SETPIPE_SZ, kOutputPipeBytes);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Duplicate(const UniqueFd& fd) {
  UniqueFd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.ok()) return ErrnoStatus(errno, "duplicate the terminal");
  return copy;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessIo>> ProcessIo::Open(const asio::any_io_executor& executor,
                                                           StreamRegistry& registry, Uris uris) {
  std::unique_ptr<ProcessIo> io(new ProcessIo(executor, registry, std::move(uris)));
  const absl::Status status = io->Claim();
  if (!status.ok()) return status;
  return io;
}

ProcessIo::~ProcessIo() { Forget(); }

absl::Status ProcessIo::Claim() {
  auto in = streaming::StreamIdOfUri(uris_.in, streaming::StdioKind::kStdin);
  auto out = streaming::StreamIdOfUri(uris_.out, streaming::StdioKind::kStdout);
  // With a terminal a fifo-minded client still names a stderr; nothing comes there.
  auto err =
      streaming::StreamIdOfUri(uris_.terminal ? "" : uris_.err, streaming::StdioKind::kStderr);
  if (!in.ok()) return in.status();
  if (!out.ok()) return out.status();
  if (!err.ok()) return err.status();
  if (!in->empty()) {
    auto stream = registry_.ClaimInput(*in);
    if (!stream.ok()) return stream.status();
    in_ = *stream;
    in_id_ = *in;
  }
  if (!out->empty()) {
    auto stream = registry_.ClaimOutput(*out);
    if (!stream.ok()) return stream.status();
    out_ = *stream;
    out_id_ = *out;
  }
  if (!err->empty()) {
    auto stream = registry_.ClaimOutput(*err);
    if (!stream.ok()) return stream.status();
    err_ = *stream;
    err_id_ = *err;
  }
  return absl::OkStatus();
}

absl::StatusOr<ProcessStdio> ProcessIo::Prepare(const std::string& console_path) {
  ProcessStdio stdio;
  if (uris_.terminal) {
    auto listener = ListenForConsole(console_path);
    if (!listener.ok()) return listener.status();
    console_listener_ = *std::move(listener);
    console_path_ = console_path;
    stdio.console_socket = console_path;
    return stdio;
  }
  if (in_ != nullptr) MAGNETAR_RETURN_IF_ERROR(MakePipe(&child_in_, &near_in_, &near_in_));
  if (out_ != nullptr) MAGNETAR_RETURN_IF_ERROR(MakeOutputPipe(&near_out_, &child_out_));
  if (err_ != nullptr) MAGNETAR_RETURN_IF_ERROR(MakeOutputPipe(&near_err_, &child_err_));
  stdio.stdin_fd = child_in_.get();
  stdio.stdout_fd = child_out_.get();
  stdio.stderr_fd = child_err_.get();
  return stdio;
}

absl::Status ProcessIo::ConnectTerminal() {
  auto master = ReceiveConsole(console_listener_.get());
  console_listener_.reset();
  if (!master.ok()) return master.status();
  master_ = *std::move(master);
  // A terminal of the wrong size is still a terminal.
  if (size_) ResizeConsole(master_.get(), size_->first, size_->second).IgnoreError();
  auto reader = Duplicate(master_);
  if (!reader.ok()) return reader.status();
  if (out_ == nullptr) {
    // A terminal that nobody reads must not stop its process.
    out_ = std::make_shared<streaming::OutputStream>(executor_);
    out_->Discard();
  }
  out_->SetSource(*std::move(reader));
  if (in_ != nullptr) {
    auto writer = Duplicate(master_);
    if (!writer.ok()) return writer.status();
    in_->SetSink(*std::move(writer), /*terminal=*/true);
  }
  return absl::OkStatus();
}

absl::Status ProcessIo::Connect() {
  if (uris_.terminal) return ConnectTerminal();
  child_in_.reset();
  child_out_.reset();
  child_err_.reset();
  if (in_ != nullptr) in_->SetSink(std::move(near_in_), /*terminal=*/false);
  if (out_ != nullptr) out_->SetSource(std::move(near_out_));
  if (err_ != nullptr) err_->SetSource(std::move(near_err_));
  return absl::OkStatus();
}

absl::Status ProcessIo::Resize(uint32_t columns, uint32_t rows) {
  // As containerd's own shim: there is nothing to be done.
  if (!uris_.terminal) return absl::OkStatus();
  size_.emplace(columns, rows);
  // Not there yet, or already gone: containerd asks early and late as a matter of course.
  if (!master_.ok()) return absl::OkStatus();
  return ResizeConsole(master_.get(), columns, rows);
}

void ProcessIo::Exited() {
  if (in_ != nullptr) in_->CloseSink();
  master_.reset();
}

void ProcessIo::LoseCaller() {
  if (uris_.terminal) {
    if (in_ != nullptr) in_->CloseSink();
    if (out_ != nullptr) out_->Abandon();
    master_.reset();
    return;
  }
  if (in_ != nullptr) in_->End();
  if (out_ != nullptr) out_->Discard();
  if (err_ != nullptr) err_->Discard();
}

Co<void> ProcessIo::WaitDelivered(std::chrono::steady_clock::time_point ended) {
  const std::shared_ptr<streaming::OutputStream> outputs[] = {out_, err_};
  for (const std::shared_ptr<streaming::OutputStream>& output : outputs) {
    if (output != nullptr)
      co_await output->WaitDelivered(ended + kOpeningTime, ended + kDeliveryTime);
  }
}

void ProcessIo::Forget() {
  if (!console_path_.empty()) RemoveFile(std::exchange(console_path_, "")).IgnoreError();
  registry_.Forget(std::exchange(in_id_, ""));
  registry_.Forget(std::exchange(out_id_, ""));
  registry_.Forget(std::exchange(err_id_, ""));
  // One that has no name in the registry.
  if (out_ != nullptr) out_->Abandon();
}

}  // namespace magnetar::guest
