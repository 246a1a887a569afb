#include "src/common/mux/session.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <cerrno>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "magnetar/event.h"
#include "magnetar/ports.h"
#include "magnetar/status.h"

namespace magnetar::mux {
namespace {

// An emulated guest pays for each change between a process that writes and the agent that reads as
// much as for copying 100 KiB.
constexpr uint32_t kFrameBytes = 256 << 10;
constexpr uint32_t kFrameHeaderBytes = 9;
// What one write takes at least, except for the last of a row: so much Linux' virtio_console passes
// on at a time (port_fops_write of 6.1), and each piece is a message to the VMM.
constexpr size_t kWriteBytes = 32 << 10;
// So much of what was waiting and has been written stays in its buffer.
constexpr size_t kKeptBytes = 64 << 10;
// Buffers read in a row before others get their turn.
constexpr int kReadsInARow = 8;

struct OptionDeleter {
  void operator()(nghttp2_option* option) const { nghttp2_option_del(option); }
};
struct CallbacksDeleter {
  void operator()(nghttp2_session_callbacks* callbacks) const {
    nghttp2_session_callbacks_del(callbacks);
  }
};

}  // namespace

// nghttp2's callbacks, turned into calls of the session's methods. None may throw.
struct Session::Callbacks {
  static Session& Of(void* user_data) { return *static_cast<Session*>(user_data); }

  // Trailers and pushes are neither.
  static bool OpensStream(const nghttp2_frame* frame) {
    return frame->hd.type == NGHTTP2_HEADERS && (frame->headers.cat == NGHTTP2_HCAT_REQUEST ||
                                                 frame->headers.cat == NGHTTP2_HCAT_RESPONSE);
  }

  static int OnBeginHeaders(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    if (!OpensStream(frame)) return 0;
    Of(user_data).OnBeginHeaders(frame->hd.stream_id);
    return 0;
  }

  static int OnHeader(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name,
                      size_t name_size, const uint8_t* value, size_t value_size, uint8_t,
                      void* user_data) {
    if (!OpensStream(frame)) return 0;
    Of(user_data).OnHeader(frame->hd.stream_id, {reinterpret_cast<const char*>(name), name_size},
                           {reinterpret_cast<const char*>(value), value_size});
    return 0;
  }

  static int OnFrame(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    Session& session = Of(user_data);
    const bool ends_stream = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    switch (frame->hd.type) {
      case NGHTTP2_SETTINGS:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) == 0) session.OnSettings();
        break;
      case NGHTTP2_HEADERS:
        if (OpensStream(frame)) session.OnHeaders(frame->hd.stream_id);
        if (ends_stream) session.OnPeerEnd(frame->hd.stream_id);
        break;
      case NGHTTP2_DATA:
        session.OnDataEnd(frame->hd.stream_id);
        if (ends_stream) session.OnPeerEnd(frame->hd.stream_id);
        break;
      default:
        break;
    }
    return 0;
  }

  static int OnData(nghttp2_session*, uint8_t, int32_t id, const uint8_t* data, size_t size,
                    void* user_data) {
    Of(user_data).OnData(id, data, size);
    return 0;
  }

  static int OnClose(nghttp2_session*, int32_t id, uint32_t code, void* user_data) {
    Of(user_data).OnClose(id, code);
    return 0;
  }

  static ssize_t ReadLength(nghttp2_session*, uint8_t, int32_t, int32_t session_window,
                            int32_t stream_window, uint32_t max_frame, void*) {
    const auto window = static_cast<uint32_t>(std::max(0, std::min(session_window, stream_window)));
    // With its header whole writes.
    return std::min({window, max_frame, kFrameBytes - kFrameHeaderBytes});
  }

  static int OnError(nghttp2_session*, int, const char* message, size_t size, void* user_data) {
    // It quotes what the peer sent.
    Of(user_data).last_error_ =
        absl::CHexEscape(absl::string_view(message, std::min<size_t>(size, 200)));
    return 0;
  }

  static ssize_t ReadData(nghttp2_session*, int32_t id, uint8_t* buffer, size_t size,
                          uint32_t* flags, nghttp2_data_source*, void* user_data) {
    return Of(user_data).ReadNear(id, buffer, size, flags);
  }
};

Session::~Session() { nghttp2_session_del(session_); }

nghttp2_data_provider Session::PumpData() {
  nghttp2_data_provider provider = {};
  provider.read_callback = Callbacks::ReadData;
  return provider;
}

absl::Status Session::Start() {
  nghttp2_session_callbacks* raw_callbacks = nullptr;
  nghttp2_option* raw_option = nullptr;
  if (nghttp2_session_callbacks_new(&raw_callbacks) != 0 || nghttp2_option_new(&raw_option) != 0) {
    return absl::ResourceExhaustedError("no memory for a mux session");
  }
  const std::unique_ptr<nghttp2_session_callbacks, CallbacksDeleter> callbacks(raw_callbacks);
  const std::unique_ptr<nghttp2_option, OptionDeleter> option(raw_option);
  nghttp2_session_callbacks_set_on_begin_headers_callback(raw_callbacks, Callbacks::OnBeginHeaders);
  nghttp2_session_callbacks_set_on_header_callback(raw_callbacks, Callbacks::OnHeader);
  nghttp2_session_callbacks_set_on_frame_recv_callback(raw_callbacks, Callbacks::OnFrame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(raw_callbacks, Callbacks::OnData);
  nghttp2_session_callbacks_set_on_stream_close_callback(raw_callbacks, Callbacks::OnClose);
  nghttp2_session_callbacks_set_data_source_read_length_callback(raw_callbacks,
                                                                 Callbacks::ReadLength);
  nghttp2_session_callbacks_set_error_callback2(raw_callbacks, Callbacks::OnError);
  nghttp2_option_set_no_auto_window_update(raw_option, 1);
  // Streams that are given up are ordinary here; nghttp2's limit is for the open Internet.
  nghttp2_option_set_stream_reset_rate_limit(raw_option, uint64_t{1} << 32, uint64_t{1} << 32);
  session_ = NewSession(raw_callbacks, raw_option);
  if (session_ == nullptr) return absl::ResourceExhaustedError("no memory for a mux session");

  const std::array<nghttp2_settings_entry, 4> settings = {{
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits_.max_streams + limits_.reserved_streams},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, limits_.stream_window_bytes},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, kFrameBytes},
  }};
  if (nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size()) != 0 ||
      nghttp2_session_set_local_window_size(
          session_, NGHTTP2_FLAG_NONE, 0, static_cast<int32_t>(limits_.connection_window_bytes)) !=
          0) {
    return absl::InvalidArgumentError("mux limits are out of range");
  }
  input_ = std::make_unique_for_overwrite<uint8_t[]>(limits_.read_bytes);
  return absl::OkStatus();
}

Co<absl::Status> Session::Run(std::shared_ptr<Session> self) {
  self->executor_ = co_await asio::this_coro::executor;
  if (self->ended_.has_value()) co_return *self->ended_;
  self->channel_.emplace(*self->executor_, std::move(self->fd_));
  struct Guard {
    Session& session;
    ~Guard() { session.End(absl::CancelledError("running the channel was cancelled")); }
  } guard{*self};
  absl::Status status = self->Start();
  if (!status.ok()) co_return status;
  auto peer = self->channel_->WaitForPeer();
  const boost::system::error_code error = co_await std::move(peer);
  if (self->ended_.has_value()) co_return *self->ended_;
  if (error) co_return absl::UnavailableError(absl::StrCat("channel: ", error.message()));
  self->Flush();
  auto reading = self->ReadLoop();
  status = co_await std::move(reading);
  self->End(status.ok() ? absl::UnavailableError("the channel was closed by the peer") : status);
  co_return status;
}

Co<absl::Status> Session::ReadLoop() {
  while (true) {
    auto readable = channel_->Readable();
    const boost::system::error_code error = co_await std::move(readable);
    if (ended_.has_value()) co_return *ended_;
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (Cancelled(cancellation)) co_return absl::CancelledError("the channel was given up");
    if (error) co_return absl::UnavailableError(absl::StrCat("channel: ", error.message()));
    bool drained = false;
    for (int i = 0; i < kReadsInARow && !drained; ++i) {
      const absl::Status status = ReadSome(drained);
      if (absl::IsOutOfRange(status)) co_return absl::OkStatus();
      if (!status.ok()) co_return status;
    }
    Flush();
    if (ended_.has_value()) co_return *ended_;
    // Without leave to send, its GOAWAY stays unsent and the session would wait on.
    const bool hopeless = !MaySend() && !last_error_.empty();
    if (hopeless || nghttp2_session_want_read(session_) == 0) {
      co_return absl::UnavailableError(absl::StrCat("HTTP/2 session ended: ", last_error_));
    }
  }
}

// OUT_OF_RANGE: the end.
absl::Status Session::ReadSome(bool& drained) {
  size_t size = 0;
  // A port of virtio_console gives a page at a time.
  while (size < limits_.read_bytes) {
    const ssize_t n = channel_->Read(input_.get() + size, limits_.read_bytes - size);
    if (n > 0) size += static_cast<size_t>(n);
    drained = n <= 0 || (channel_->is_socket() && size < limits_.read_bytes);
    if (n > 0 && !drained) continue;
    if (size > 0) break;
    if (n == 0) return absl::OutOfRangeError("end");
    if (errno == EAGAIN) return absl::OkStatus();
    return absl::UnavailableError(ErrnoStatus(errno, "read the channel").message());
  }
  const ssize_t taken = nghttp2_session_mem_recv(session_, input_.get(), size);
  if (taken < 0) {
    return absl::UnavailableError(
        absl::StrCat("HTTP/2: ", nghttp2_strerror(static_cast<int>(taken)), " ", last_error_));
  }
  return absl::OkStatus();
}

void Session::Flush() {
  if (ended_.has_value() || session_ == nullptr || flushing_ || !MaySend()) return;
  flushing_ = true;
  if (!waiting_writable_) {
    while (true) {
      const uint8_t* data = nullptr;
      const ssize_t n = nghttp2_session_mem_send(session_, &data);
      if (n < 0) {
        flushing_ = false;
        End(absl::UnavailableError(
            absl::StrCat("HTTP/2: ", nghttp2_strerror(static_cast<int>(n)))));
        return;
      }
      if (n == 0) {
        if (!to_reset_.empty()) {
          for (const int32_t id : std::exchange(to_reset_, {})) Reset(id, NGHTTP2_CANCEL);
          continue;
        }
        WriteOut(/*all=*/true);
        break;
      }
      if (!Gather(reinterpret_cast<const char*>(data), static_cast<size_t>(n))) break;
    }
  }
  flushing_ = false;
}

bool Session::Gather(const char* data, size_t size) {
  // What is a whole write already need not be copied.
  while (output_.empty() && size >= kWriteBytes) {
    const ssize_t n = channel_->Write(data, size);
    if (n <= 0) break;
    data += n;
    size -= static_cast<size_t>(n);
  }
  while (output_.size() + size >= kWriteBytes) {
    const size_t part = kWriteBytes - output_.size();
    output_.append(data, part);
    data += part;
    size -= part;
    if (WriteOut(/*all=*/false)) continue;
    // Waits with the rest of this frame, and no more.
    output_.append(data, size);
    return false;
  }
  output_.append(data, size);
  return true;
}

bool Session::WriteOut(bool all) {
  size_t written = 0;
  while (output_.size() - written >= (all ? 1 : kWriteBytes)) {
    const ssize_t n = channel_->Write(output_.data() + written, output_.size() - written);
    if (n < 0) {
      if (errno != EAGAIN) {
        End(absl::UnavailableError(ErrnoStatus(errno, "write the channel").message()));
        return false;
      }
      output_.erase(0, written);
      waiting_writable_ = true;
      channel_->WaitWritable([self = shared_from_this()](const boost::system::error_code& error) {
        self->waiting_writable_ = false;
        if (self->ended_.has_value()) return;
        if (error) {
          self->End(absl::UnavailableError(absl::StrCat("channel: ", error.message())));
          return;
        }
        if (self->WriteOut(/*all=*/true)) self->Flush();
      });
      return false;
    }
    written += static_cast<size_t>(n);
  }
  output_.erase(0, written);
  // Nor does a session keep what it once had to wait with.
  if (output_.empty() && output_.capacity() > 2 * kWriteBytes) output_ = std::string();
  return true;
}

void Session::End(absl::Status status) {
  if (ended_.has_value()) return;
  ended_ = std::move(status);
  if (channel_.has_value()) channel_->Close();
  fd_.reset();
  for (const auto& [id, pump] : std::exchange(pumps_, {})) pump->Close();
  OnEnd(*ended_);
}

void Session::RequestClose() {
  if (ended_.has_value()) return;
  if (!executor_.has_value()) {
    End(absl::UnavailableError("the channel was closed on this side"));
    return;
  }
  asio::dispatch(*executor_, [self = shared_from_this()] {
    self->End(absl::UnavailableError("the channel was closed on this side"));
  });
}

absl::StatusOr<std::pair<UniqueFd, UniqueFd>> Session::MakePair() {
  std::array<int, 2> fds;
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()) != 0) {
    return ErrnoStatus(errno, "socketpair");
  }
  return std::pair(UniqueFd(fds[0]), UniqueFd(fds[1]));
}

bool Session::HasRoom(uint32_t port) const {
  const uint32_t reserved = port == kForwardPort ? 0 : limits_.reserved_streams;
  return pumps_.size() < limits_.max_streams + reserved;
}

std::shared_ptr<Session::Pump> Session::AddPump(int32_t id, UniqueFd near) {
  auto pump = std::make_shared<Pump>(*executor_, std::move(near));
  pumps_[id] = pump;
  return pump;
}

void Session::Reset(int32_t id, uint32_t code) {
  // Only fails without memory, and then the session ends by itself.
  (void)nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, code);
}

// nghttp2 has room in the stream's window and asks for data.
ssize_t Session::ReadNear(int32_t id, uint8_t* buffer, size_t size, uint32_t* flags) {
  const auto it = pumps_.find(id);
  if (it == pumps_.end()) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  const std::shared_ptr<Pump> pump = it->second;
  if (pump->passed.has_value()) return ReadPassed(id, pump, buffer, size, flags);
  UniqueFd passed;
  ssize_t n = pump->near.Receive(buffer, size, passed);
  if (n > 0 && passed.ok()) {
    // The descriptor comes with the first of its message's bytes, of which there are two at most:
    // the last one may not have had room.
    char how;
    const bool cut = static_cast<size_t>(n) == size && pump->near.Read(&how, 1) == 1;
    if (!cut) how = static_cast<char>(buffer[--n]);
    pump->whole = how == kPassConnection;
    pump->passed.emplace(*executor_, std::move(passed));
    ResetWhenNearEnds(id, pump);
    if (n == 0) return ReadPassed(id, pump, buffer, size, flags);
  }
  if (n > 0) return n;
  if (n < 0 && errno == EAGAIN) return Defer(id, pump, pump->near);
  if (n < 0) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;  // resets the stream
  // Not a half-close: what comes from the other side would have no reader either.
  if (pump->near.PeerGone()) to_reset_.push_back(id);
  *flags |= NGHTTP2_DATA_FLAG_EOF;
  return 0;
}

ssize_t Session::ReadPassed(int32_t id, const std::shared_ptr<Pump>& pump, uint8_t* buffer,
                            size_t size, uint32_t* flags) {
  const ssize_t n = pump->passed->Read(buffer, size);
  if (n > 0) return n;
  if (n < 0 && errno == EAGAIN) return Defer(id, pump, *pump->passed);
  // A terminal's master fails with EIO once its last user is gone; a pipe ends.
  *flags |= NGHTTP2_DATA_FLAG_EOF;
  pump->source_ended = true;
  if (!pump->whole) {
    pump->passed->Close();
  } else if (n < 0 || pump->near_gone || (!pump->peer_ended && pump->passed->PeerGone())) {
    // What it sent before it broke goes first.
    to_reset_.push_back(id);
  }
  return 0;
}

ssize_t Session::Defer(int32_t id, const std::shared_ptr<Pump>& pump, Channel& channel) {
  if (!pump->waiting_readable) {
    pump->waiting_readable = true;
    channel.WaitReadable(
        [self = shared_from_this(), pump, id](const boost::system::error_code& error) {
          pump->waiting_readable = false;
          if (error || self->ended_.has_value() || !pump->stream_open) return;
          nghttp2_session_resume_data(self->session_, id);
          self->Flush();
        });
  }
  return NGHTTP2_ERR_DEFERRED;
}

// The user of a near end who has passed something sends nothing more: what it does is to go away.
void Session::ResetWhenNearEnds(int32_t id, const std::shared_ptr<Pump>& pump) {
  pump->near.WaitReadable(
      [self = shared_from_this(), pump, id](const boost::system::error_code& error) {
        if (error || self->ended_.has_value()) return;
        // A wait may end with an event of what has been read by now.
        char byte;
        if (const ssize_t n = pump->near.Read(&byte, 1); n < 0 && errno == EAGAIN) {
          self->ResetWhenNearEnds(id, pump);
          return;
        }
        pump->passed->Close();
        pump->near_gone = true;
        pump->DropUnwritten();
        if (pump->stream_open) self->Reset(id, NGHTTP2_CANCEL);
        self->Settle(id, pump);
        self->Flush();
      });
}

void Session::Pump::Close() {
  near.Close();
  if (passed.has_value()) passed->Close();
}

void Session::OnData(int32_t id, const uint8_t* data, size_t size) {
  // A stalled stream must not use up the window that all share.
  nghttp2_session_consume_connection(session_, size);
  const auto it = pumps_.find(id);
  if (it == pumps_.end()) return;
  const std::shared_ptr<Pump> pump = it->second;
  if (pump->near_gone) {
    // Its sender may have to be done before it hears why.
    nghttp2_session_consume_stream(session_, id, size);
    return;
  }
  if (pump->may_widen) Widen(id, *pump, size);
  // A piece that is whole as it comes is not gathered.
  if (pump->unwritten.empty() && size >= limits_.gather_bytes) {
    const ssize_t n = pump->sink().Write(data, size);
    if (n < 0 && errno != EAGAIN) {
      nghttp2_session_consume_stream(session_, id, size);
      SinkGone(id, *pump);
      return;
    }
    const size_t written = n > 0 ? static_cast<size_t>(n) : 0;
    nghttp2_session_consume_stream(session_, id, written);
    if (written == size) return;
    pump->unwritten.append(reinterpret_cast<const char*>(data) + written, size - written);
    WaitToWrite(id, pump);
    return;
  }
  pump->unwritten.append(reinterpret_cast<const char*>(data), size);
  if (pump->left() >= limits_.gather_bytes && !pump->waiting_writable) WriteUnwritten(id, pump);
}

void Session::OnDataEnd(int32_t id) {
  const auto it = pumps_.find(id);
  if (it == pumps_.end()) return;
  const std::shared_ptr<Pump> pump = it->second;
  if (!pump->unwritten.empty() && !pump->waiting_writable) WriteUnwritten(id, pump);
}

// Nobody takes what comes. A connection may still have something to say.
void Session::SinkGone(int32_t id, Pump& pump) {
  pump.near_gone = true;
  if (pump.stream_open) nghttp2_session_consume_stream(session_, id, pump.left());
  pump.DropUnwritten();
  const bool heard = !pump.whole || pump.source_ended;
  if (heard && pump.stream_open) Reset(id, NGHTTP2_CANCEL);
}

// Most streams carry a few lines, and their windows are not worth a message.
void Session::Widen(int32_t id, Pump& pump, size_t received) {
  pump.received += received;
  if (pump.received < limits_.stream_window_bytes / 2) return;
  if (wide_streams_ >= limits_.max_wide_streams) return;
  pump.may_widen = false;
  pump.wide = true;
  ++wide_streams_;
  // Only fails without memory, and then the session ends by itself.
  (void)nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, id,
                                              static_cast<int32_t>(limits_.wide_window_bytes));
}

// Nothing more comes for its window.
void Session::Narrow(Pump& pump) {
  pump.may_widen = false;
  if (std::exchange(pump.wide, false)) --wide_streams_;
}

// Writes what the sink takes of what has come for it, and waits with the rest.
void Session::WriteUnwritten(int32_t id, const std::shared_ptr<Pump>& pump) {
  const ssize_t n = pump->sink().Write(pump->unwritten.data() + pump->unwritten_at, pump->left());
  if (n < 0 && errno != EAGAIN) {
    SinkGone(id, *pump);
    return;
  }
  if (n > 0) {
    if (pump->stream_open) {
      nghttp2_session_consume_stream(session_, id, static_cast<size_t>(n));
    }
    pump->unwritten_at += static_cast<size_t>(n);
    if (pump->left() == 0) {
      // An idle stream keeps no buffer.
      pump->DropUnwritten();
    } else if (pump->unwritten_at > kKeptBytes) {
      pump->unwritten.erase(0, std::exchange(pump->unwritten_at, 0));
    }
  }
  if (!pump->unwritten.empty()) WaitToWrite(id, pump);
}

void Session::WaitToWrite(int32_t id, const std::shared_ptr<Pump>& pump) {
  if (pump->waiting_writable) return;
  pump->waiting_writable = true;
  pump->sink().WaitWritable(
      [self = shared_from_this(), pump, id](const boost::system::error_code& error) {
        pump->waiting_writable = false;
        if (error || self->ended_.has_value()) return;
        if (pump->left() > 0) self->WriteUnwritten(id, pump);
        self->Settle(id, pump);
        self->Flush();
      });
}

void Session::OnPeerEnd(int32_t id) {
  const auto it = pumps_.find(id);
  if (it == pumps_.end()) return;
  const std::shared_ptr<Pump> pump = it->second;
  pump->peer_ended = true;
  Narrow(*pump);
  Settle(id, pump);
}

// Passes the end on once all that came before it has been written.
void Session::Settle(int32_t id, const std::shared_ptr<Pump>& pump) {
  if (!pump->unwritten.empty()) return;
  if (!pump->stream_open) {
    pump->Close();
    Narrow(*pump);
    pumps_.erase(id);
  } else if (pump->peer_ended) {
    pump->sink().ShutdownWrite();
  }
}

void Session::OnClose(int32_t id, uint32_t code) {
  OnStreamClosed(id, code);
  const auto it = pumps_.find(id);
  if (it == pumps_.end()) return;
  const std::shared_ptr<Pump> pump = it->second;
  pump->stream_open = false;
  // A reset cuts off what was still to come, not what came whole.
  if (!pump->peer_ended) pump->DropUnwritten();
  Settle(id, pump);
}

}  // namespace magnetar::mux
