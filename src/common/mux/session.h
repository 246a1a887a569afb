#pragma once

#include <nghttp2/nghttp2.h>

#include <array>
#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "magnetar/co.h"
#include "magnetar/mux.h"
#include "magnetar/unique_fd.h"
#include "src/common/mux/channel.h"

namespace magnetar::mux {

// What both sides share: an HTTP/2 session on the channel, and the pumping
// between its streams and their socketpairs. Bytes wait in sockets, or, when they
// have come for a reader that stalls, in a buffer of hardly more than the stream's window.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(UniqueFd channel, const Limits& limits) : limits_(limits), fd_(std::move(channel)) {}
  virtual ~Session();

  // Until the channel ends (OK) or breaks, or the coroutine is cancelled.
  static Co<absl::Status> Run(std::shared_ptr<Session> self);
  void RequestClose();

 protected:
  // The near half of a stream's socketpair.
  struct Pump {
    Pump(const asio::any_io_executor& executor, UniqueFd near) : near(executor, std::move(near)) {}
    void Close();
    Channel near;
    // What the near end's user has passed to be used in its place.
    std::optional<Channel> passed;
    bool whole = false;         // to be written, too
    bool source_ended = false;  // what was passed has been read to its end
    Channel& sink() { return whole ? *passed : near; }
    std::string unwritten;  // from `unwritten_at` on: received, not yet taken by the near end
    size_t unwritten_at = 0;
    size_t left() const { return unwritten.size() - unwritten_at; }
    void DropUnwritten() {
      unwritten = std::string();
      unwritten_at = 0;
    }
    bool waiting_readable = false;
    bool waiting_writable = false;
    bool peer_ended = false;  // END_STREAM came
    bool near_gone = false;   // both directions: nobody will read what still comes
    bool stream_open = true;  // nghttp2 knows it
    bool may_widen = false;   // to wide_window_bytes
    size_t received = 0;      // while it may
    bool wide = false;
  };

  virtual nghttp2_session* NewSession(const nghttp2_session_callbacks* callbacks,
                                      const nghttp2_option* option) = 0;
  // Whether anything may be written yet.
  virtual bool MaySend() const { return true; }
  virtual void OnSettings() {}
  // Header of a request (guest) or response (host).
  virtual void OnBeginHeaders(int32_t) {}
  virtual void OnHeader(int32_t, std::string_view, std::string_view) {}
  virtual void OnHeaders(int32_t) {}
  virtual void OnStreamClosed(int32_t, uint32_t) {}
  virtual void OnEnd(const absl::Status&) {}

  // Both ends of a new stream; the far one is for the user.
  static absl::StatusOr<std::pair<UniqueFd, UniqueFd>> MakePair();
  // Whether one more stream to this port is within the limits.
  bool HasRoom(uint32_t port) const;
  std::shared_ptr<Pump> AddPump(int32_t id, UniqueFd near);
  static nghttp2_data_provider PumpData();
  void Reset(int32_t id, uint32_t code);
  // Writes what the session has to say. Not from within its callbacks.
  void Flush();

  const Limits limits_;
  nghttp2_session* session_ = nullptr;
  std::optional<asio::any_io_executor> executor_;
  std::map<int32_t, std::shared_ptr<Pump>> pumps_;
  std::optional<absl::Status> ended_;

 private:
  struct Callbacks;

  absl::Status Start();
  Co<absl::Status> ReadLoop();
  absl::Status ReadSome(bool& drained);
  void End(absl::Status status);
  // Adds to output_, and writes what makes up whole writes. False if the channel is full or gone.
  bool Gather(const char* data, size_t size);
  // Writes output_, of less than a whole write only if `all`. False if the channel is full or gone.
  bool WriteOut(bool all);

  ssize_t ReadNear(int32_t id, uint8_t* buffer, size_t size, uint32_t* flags);
  ssize_t ReadPassed(int32_t id, const std::shared_ptr<Pump>& pump, uint8_t* buffer, size_t size,
                     uint32_t* flags);
  ssize_t Defer(int32_t id, const std::shared_ptr<Pump>& pump, Channel& channel);
  void ResetWhenNearEnds(int32_t id, const std::shared_ptr<Pump>& pump);
  void OnData(int32_t id, const uint8_t* data, size_t size);
  void OnDataEnd(int32_t id);
  void SinkGone(int32_t id, Pump& pump);
  void Widen(int32_t id, Pump& pump, size_t received);
  void Narrow(Pump& pump);
  void OnPeerEnd(int32_t id);
  void OnClose(int32_t id, uint32_t code);
  void WriteUnwritten(int32_t id, const std::shared_ptr<Pump>& pump);
  void WaitToWrite(int32_t id, const std::shared_ptr<Pump>& pump);
  void Settle(int32_t id, const std::shared_ptr<Pump>& pump);

  UniqueFd fd_;
  std::optional<Channel> channel_;
  std::unique_ptr<uint8_t[]> input_;
  std::string output_;  // gathered, or what the channel has not taken
  uint32_t wide_streams_ = 0;
  bool waiting_writable_ = false;
  bool flushing_ = false;
  std::vector<int32_t> to_reset_;  // streams whose near end went away
  std::string last_error_;
};

}  // namespace magnetar::mux
