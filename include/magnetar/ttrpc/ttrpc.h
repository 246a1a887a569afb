#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "magnetar/co.h"
#include "magnetar/unique_fd.h"

// ttrpc, containerd's RPC over one byte stream: client and server, unary and
// streaming calls. Wire format: ttrpc 1.2.7 (channel.go, proto/request.proto), a
// header of 10 bytes (length, stream id, type, flags) and at most 4 MiB of body.
//
// Threads: a connection lives on one executor, which must be a single thread or
// a strand; handlers run there. Nothing here blocks.
// Errors: a handler's Status travels as it is; UNAVAILABLE means the connection
// is gone, DEADLINE_EXCEEDED that the call's own time ran out.
namespace magnetar::ttrpc {

struct Limits {
  size_t max_message_bytes = 4 << 20;
  // The same for what comes in, where the peer is not trusted with as much as it is sent.
  size_t max_received_bytes = 4 << 20;
  // Calls and streams in flight on one connection; more are answered
  // RESOURCE_EXHAUSTED. A call whose time ran out while its handler runs on is not counted here
  // but with its like: so many of one method, so that a method that hangs does not take the others
  // along.
  size_t max_streams = 256;
  // Unread messages of one stream. A peer that sends more than this without
  // being read ends its stream (RESOURCE_EXHAUSTED), never its connection.
  size_t max_stream_backlog_bytes = 8 << 20;
  // Unread messages of all streams, requests being served and responses not yet written, of one
  // connection; beyond, the stream or call concerned gets RESOURCE_EXHAUSTED.
  size_t max_buffered_bytes = 32 << 20;
  // A server closes a connection this long after the last of its streams, if nothing was called
  // since: some clients never close those of a stream. Zero: never.
  std::chrono::nanoseconds close_after_streams{0};
};

struct CallContext {
  std::multimap<std::string, std::string> metadata;  // at most 64
  // Of a unary call the server itself sees to it.
  std::optional<std::chrono::steady_clock::time_point> deadline;

  // First value of a key, or empty.
  std::string_view Metadata(const std::string& key) const {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string_view() : std::string_view(it->second);
  }
};

// One bidirectional stream of messages, both sides of it alike. At most one
// Receive and one Send may be pending at a time. Messages come out in the order
// in which they came in, and the end after the last of them.
class Stream {
 public:
  struct Sent {
    absl::Status status;
    size_t sent = 0;
  };

  virtual ~Stream() = default;
  // The next message; nullopt once the peer has ended its side.
  virtual Co<absl::StatusOr<std::optional<std::string>>> Receive() = 0;
  // Completes when the message has been handed to the socket.
  virtual Co<absl::Status> Send(std::string message) = 0;
  // The same for several at once, in one write as far as possible. The first `sent` of them have
  // been handed to the socket, whatever the status says; if this side gave up the stream while the
  // connection lives on, perhaps more. Counts as one Send.
  virtual Co<Sent> SendAll(std::vector<std::string> messages);
  // Ends this side with an empty Data frame, flags remote-closed|no-data.
  virtual Co<absl::Status> CloseSend() = 0;
  // Makes a pending and every later Receive and Send fail with CANCELLED.
  virtual void Cancel() = 0;
};

using UnaryHandler =
    std::function<Co<absl::StatusOr<std::string>>(CallContext context, std::string payload)>;
// An error Status ends the stream with a Response that carries it. OK ends it as CloseSend does,
// if that was not called: Go's server does the same, and a Response would look to Go's client like
// one more message. When the connection goes, Receive still gives what came before, then
// UNAVAILABLE, and Send fails; the handler is not cancelled, so that it can finish with what it
// got. One that waits for something else must also keep a Receive pending.
using StreamHandler =
    std::function<Co<absl::Status>(CallContext context, std::shared_ptr<Stream> stream)>;

// What a server serves. Filled before it is shared, then immutable.
class Services {
 public:
  void AddUnary(std::string_view service, std::string_view method, UnaryHandler handler);
  void AddStream(std::string_view service, std::string_view method, StreamHandler handler);

  // handler: Co<StatusOr<Response>>(CallContext, Request)
  template <typename Request, typename Response, typename Handler>
  void Add(std::string_view service, std::string_view method, Handler handler) {
    AddUnary(service, method,
             [handler = std::move(handler)](
                 CallContext context, std::string payload) -> Co<absl::StatusOr<std::string>> {
               Request request;
               if (!request.ParseFromString(payload)) {
                 co_return absl::InvalidArgumentError("request does not parse");
               }
               payload.clear();
               auto call = handler(std::move(context), std::move(request));
               absl::StatusOr<Response> response = co_await std::move(call);
               if (!response.ok()) co_return response.status();
               co_return response->SerializeAsString();
             });
  }

  // nullptr if there is none. The pointers stay valid as long as this object.
  const UnaryHandler* FindUnary(const std::string& service, const std::string& method) const;
  const StreamHandler* FindStream(const std::string& service, const std::string& method) const;

 private:
  std::map<std::pair<std::string, std::string>, UnaryHandler> unary_;
  std::map<std::pair<std::string, std::string>, StreamHandler> streams_;
};

// Serves one connection (a connected stream socket of any family) until the peer
// closes it, it breaks, or the coroutine is cancelled (terminal); then ends all its streams,
// waits for its handlers and returns. Frames are handled in order and the close
// last. OK on an orderly close.
// A unary call is answered DEADLINE_EXCEEDED once its time has run out. Its handler gets a terminal
// cancellation then, as do all that still run at the end of the connection. It unwinds a coroutine
// at its next co_await; one that must not be interrupted starts with
//   co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
// If ServeConnection itself is cancelled, stream handlers get it too.
// `received`: what has already been read from the socket.
Co<absl::Status> ServeConnection(UniqueFd socket, std::shared_ptr<const Services> services,
                                 Limits limits = {}, std::string received = {});

// One client connection; calls may overlap. All methods on its executor.
class Client {
 public:
  virtual ~Client() = default;

  // Takes a connected stream socket. Never fails: a broken socket shows in the calls.
  static std::shared_ptr<Client> Create(const asio::any_io_executor& executor, UniqueFd socket,
                                        Limits limits = {});

  // timeout zero: none. Metadata: as pairs.
  virtual Co<absl::StatusOr<std::string>> CallRaw(
      std::string service, std::string method, std::string payload,
      std::chrono::nanoseconds timeout,
      std::vector<std::pair<std::string, std::string>> metadata) = 0;
  virtual Co<absl::StatusOr<std::shared_ptr<Stream>>> OpenStream(std::string service,
                                                                 std::string method) = 0;
  // Completes when the connection is gone.
  virtual Co<void> Closed() = 0;
  // Drops the connection; calls in flight fail with UNAVAILABLE.
  virtual void Close() = 0;

  template <typename Response, typename Request>
  Co<absl::StatusOr<Response>> Call(std::string service, std::string method, Request request,
                                    std::chrono::nanoseconds timeout) {
    std::vector<std::pair<std::string, std::string>> no_metadata;
    auto call =
        CallRaw(service, method, request.SerializeAsString(), timeout, std::move(no_metadata));
    absl::StatusOr<std::string> payload = co_await std::move(call);
    if (!payload.ok()) co_return payload.status();
    Response response;
    if (!response.ParseFromString(*payload)) {
      co_return absl::InternalError(
          absl::StrCat(service, "/", method, ": response does not parse"));
    }
    co_return response;
  }
};

}  // namespace magnetar::ttrpc
