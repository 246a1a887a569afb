#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "magnetar/co.h"
#include "magnetar/streaming/frames.h"
#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::streaming::testing {

// containerd's end of a stdio stream.
inline Co<absl::StatusOr<std::shared_ptr<ttrpc::Stream>>> OpenStdio(
    std::shared_ptr<ttrpc::Client> client, std::string id) {
  auto open = client->OpenStream(kStreamingService, kStreamMethod);
  absl::StatusOr<std::shared_ptr<ttrpc::Stream>> stream = co_await std::move(open);
  if (!stream.ok()) co_return stream.status();
  auto init = (*stream)->Send(StreamInitFrame(id));
  const absl::Status sent = co_await std::move(init);
  if (!sent.ok()) co_return sent;
  auto receive = (*stream)->Receive();
  const auto accepted = co_await std::move(receive);
  if (!accepted.ok()) co_return accepted.status();
  if (!accepted->has_value()) co_return absl::OutOfRangeError("ended");
  co_return *stream;
}

struct Frames {
  std::string data;
  std::vector<size_t> sizes;
  bool ended = false;
  absl::Status status;
};

// Reads an output to its end, which it answers as containerd does, or until `at_least` bytes are
// there; grants `grant` once, then as consumed.
inline Co<Frames> ReadOutput(std::shared_ptr<ttrpc::Stream> stream, int64_t grant,
                             size_t at_least = std::string::npos, bool closes = true) {
  Frames out;
  int64_t window = 0;
  while (out.data.size() < at_least) {
    if (window < grant) {
      auto send = stream->Send(WindowUpdateFrame(static_cast<int32_t>(grant)));
      const absl::Status sent = co_await std::move(send);
      static_cast<void>(sent);
      window += grant;
    }
    auto receive = stream->Receive();
    absl::StatusOr<std::optional<std::string>> message = co_await std::move(receive);
    out.status = message.status();
    if (!message.ok()) break;
    if (!message->has_value()) {
      out.ended = true;
      if (!closes) break;
      auto close = stream->CloseSend();
      const absl::Status closed = co_await std::move(close);
      static_cast<void>(closed);
      break;
    }
    const absl::StatusOr<std::string> data = ParseData(**message);
    out.status = data.status();
    if (!data.ok()) break;
    window -= static_cast<int64_t>(data->size());
    out.sizes.push_back(data->size());
    out.data += *data;
  }
  co_return out;
}

}  // namespace magnetar::streaming::testing
