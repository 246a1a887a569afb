#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

// Many byte streams over one, for guests whose only channel is a virtio-serial
// port: HTTP/2 by libnghttp2, one CONNECT request per stream with `:authority`
// "guest:<port>". Each stream ends in a socketpair, so that whatever speaks to a
// vsock connection speaks to it unchanged, half-closes included. Flow control is
// HTTP/2's: a stream whose reader stalls costs its window and stalls alone.
//
// The user of a stream may pass a descriptor (SCM_RIGHTS) in a message whose last byte, of two at
// most, is not sent: after all that was written before, the descriptor is used in the user's place,
// without another copy, and the user writes nothing more. kPassSource: it is read, to its end.
// kPassConnection: a connected socket, which also gets what comes; the user's own socket ends when
// that is over. Shutting down the socket gives up the stream.
//
// Threads: everything on the executor of the coroutine that called Run().
namespace magnetar::mux {

inline constexpr char kPassSource = 0;
inline constexpr char kPassConnection = 1;

struct Limits {
  uint32_t stream_window_bytes = 256 << 10;
  // What a stream gets once it has shown that it needs it, so many at a time: outputs at the host's
  // side (kOutputPort), forwarded connections in the guest (kForwardPort).
  uint32_t wide_window_bytes = 1 << 20;
  uint32_t max_wide_streams = 16;
  // What comes within one frame is passed on in pieces of so much at least, the last one at the
  // frame's end, and not as it comes.
  uint32_t gather_bytes = 0;
  // What is read from the channel at a time.
  size_t read_bytes = 64 << 10;
  uint32_t connection_window_bytes = 4 << 20;
  uint32_t max_streams = 1024;
  // Beyond those, for every port but kForwardPort (ports.h): however many connections strangers
  // have forwarded, the daemon and containerd still reach their guest.
  uint32_t reserved_streams = 1280;
  // Within which the guest answers a Connect.
  std::chrono::nanoseconds connect_timeout = std::chrono::seconds(10);
};

// The host's side: opens streams. It sends only once the guest has spoken, so
// that nothing is lost in a port that no one has opened yet.
class Host {
 public:
  virtual ~Host() = default;
  static std::shared_ptr<Host> Create(UniqueFd channel, Limits limits = {});
  // Runs until the channel ends or breaks.
  virtual Co<absl::Status> Run() = 0;
  // Completes when the guest's first SETTINGS frame is in: its "ready" knock.
  // UNAVAILABLE if the channel ends before.
  virtual Co<absl::Status> Ready() = 0;
  // The near end of a new stream to `port`, once the guest is ready and accepted it. UNAVAILABLE:
  // the guest refused (nothing listens there) or the channel is gone. DEADLINE_EXCEEDED: a guest
  // that was ready did not answer within Limits::connect_timeout.
  virtual Co<absl::StatusOr<UniqueFd>> Connect(uint32_t port) = 0;
  virtual void Close() = 0;
};

// The guest's side: accepts streams. `accept` is given the port and the near end,
// and says whether something listens there.
class Guest {
 public:
  virtual ~Guest() = default;
  using Accept = std::function<absl::Status(uint32_t port, UniqueFd stream)>;
  static std::shared_ptr<Guest> Create(UniqueFd channel, Accept accept, Limits limits = {});
  virtual Co<absl::Status> Run() = 0;
};

}  // namespace magnetar::mux
